-- flags: allow-oom; after: context entries groups filters consumers retention failures dispatch stream
-- Commits the items ARGV[5] and on for the group ARGV[4], and removes those that no other group retains. Answers how
-- many were present and not yet committed.

local S = stream.begin()
if not S then
  return {'gone'}
end
stream.write_for_wait(S)
local named, seen = {}, {}
for place = 5, #ARGV do
  if not seen[ARGV[place]] then
    named[#named + 1] = ARGV[place]
    seen[ARGV[place]] = true
  end
end
entries.load(S, named)
local present = {}
for _, id in ipairs(named) do
  if entries.present(S, id) then
    present[#present + 1] = id
  end
end
if #present == 0 then
  return stream.finish(S, 'ok', 0)
end
local G = groups.make(S, ARGV[4])

-- items that no other group retains, and the others
local gone, retained, has_some = {}, {}, call('EXISTS', G.g .. 'done') == 1
for _, id in ipairs(present) do
  if not has_some or call('SISMEMBER', G.g .. 'gone', id) == 1 or not groups.has_committed(G, id) then
    table.insert(retention.holder(S, id, G) == filters.NOBODY and gone or retained, id)
  end
end

in_chunks(retained, function(part)
  consumers.end_delivery(G, part)
end)
for _, id in ipairs(retained) do
  groups.unhold(G, id)
  failures.drop_exhausted(G, id)
  if G.marks then
    call('HDEL', G.g .. 'by', id)
  end
  call('ZADD', G.g .. 'done', 0, entries.rank(S, id))
  if call('SREM', G.g .. 'gone', id) == 1 then
    call('HDEL', S.p .. 'answers', id .. '\0' .. G.name)
  end
  S.has_changed = true
end
retention.remove(S, gone)
if groups.is_idle(G) then
  groups.forget(G)
end
dispatch.all(S)
return stream.finish(S, 'ok', #gone + #retained)
