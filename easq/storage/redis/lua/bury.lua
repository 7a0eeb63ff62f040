-- flags: ; after: stream entries groups members handout rules
-- The item ARGV[5] counts as committed for the group ARGV[4], which gave it up, and its copy is in the rear store; when
-- it was the last group and none committed, the answer is in the sink. Without room in the rear store it stays.
--
-- ARGV[6] PREFIX of the rear store  [7] its most items  [8] most bytes  [9] tags and [10] data of the copy
-- [11] PREFIX of the sink, or ''  [12] tags and [13] data of the answer
-- `ok`, `full`, or `done` when there is nothing to be buried any more

local S = rules.begin()
local rear = open_stream(ARGV[6])
if not S or not rear then
  return {'gone'}
end
local name, id = ARGV[4], ARGV[5]
local G = groups.get(S, name)
local doom = call('HGET', S.p .. 'doom', name .. '\0' .. id)
if not G or not doom or not entries.present(S, id) then
  return rules.finish(S, 'done')
end
groups.undoom(G, id)
groups.unhold(G, id)
if not entries.has_room(rear, entries.size(S, id), tonumber(ARGV[7]), tonumber(ARGV[8])) then
  local f = cmsgpack.unpack(doom)
  if f[1] > 0 then
    groups.hold(G, id, NOW + f[1], f[2])
    local m = f[2] ~= '' and members.get(G, f[2])
    if m and m.session ~= 0 then
      members.keep_for(G, members.sessions(G)[m.session], id)
    end
  else
    members.put_back(G, id)
  end
  handout.dispatch(G)
  return rules.finish(S, 'full')
end
entries.store(rear, 0, ARGV[9], ARGV[10])
call('ZADD', G.g .. 'done', 0, entries.rank(S, id))
call('SADD', G.g .. 'gone', id)
if ARGV[11] ~= '' then
  call('HSET', S.p .. 'answers', id .. '\0' .. name, cmsgpack.pack({ARGV[11], ARGV[12], ARGV[13]}))
end
S.touched = true
if groups.holder(S, id) == groups.NOBODY then
  rules.retire(S, {id}, name)
end
local all = {}
for _, one in pairs(streams) do
  all[#all + 1] = one
end
for _, one in ipairs(all) do
  handout.dispatch_all(one)
end
return rules.finish(S, 'ok')
