-- flags: ; after: context entries groups filters consumers retention failures dispatch stream
-- Stores the dead letter of the exhausted item ARGV[5] in the rear store. The item counts as committed for the group
-- ARGV[4]. If it was the last group and none committed the item, the answer goes to the sink. Without room in the rear
-- store the item stays.
--
-- ARGV[6] PREFIX of the rear store  [7] its most items  [8] most bytes  [9] tags and [10] data of the copy
-- [11] PREFIX of the sink, or ''  [12] tags and [13] data of the answer
--
-- Answers `ok`, `full`, or `done` when no dead letter of the item is needed any more.

local S = stream.begin()
local rear = open_stream(ARGV[6])
if not S or not rear then
  return {'gone'}
end
local name, id = ARGV[4], ARGV[5]
local G = groups.get(S, name)
local exhausted_item = call('HGET', S.p .. 'doom', name .. '\0' .. id)
if not G or not exhausted_item or not entries.present(S, id) then
  return stream.finish(S, 'done')
end
failures.drop_exhausted(G, id)
groups.unhold(G, id)
if not entries.has_room(rear, entries.size(S, id), tonumber(ARGV[7]), tonumber(ARGV[8])) then
  local f = cmsgpack.unpack(exhausted_item)
  if f[1] > 0 then
    groups.hold(G, id, NOW + f[1], f[2])
    local m = f[2] ~= '' and consumers.get(G, f[2])
    if m and m.session ~= 0 then
      consumers.redeliver_to(G, consumers.sessions(G)[m.session], id)
    end
  else
    consumers.make_ready(G, id)
  end
  dispatch.group(G)
  return stream.finish(S, 'full')
end
entries.store(rear, 0, ARGV[9], ARGV[10])
call('ZADD', G.g .. 'done', 0, entries.rank(S, id))
call('SADD', G.g .. 'gone', id)
if ARGV[11] ~= '' then
  call('HSET', S.p .. 'answers', id .. '\0' .. name, cmsgpack.pack({ARGV[11], ARGV[12], ARGV[13]}))
end
S.has_changed = true
if retention.holder(S, id) == filters.NOBODY then
  retention.retire(S, {id}, name)
end
local all = {}
for _, one in pairs(streams) do
  all[#all + 1] = one
end
for _, one in ipairs(all) do
  dispatch.all(one)
end
return stream.finish(S, 'ok')
