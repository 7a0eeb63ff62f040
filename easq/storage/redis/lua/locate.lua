-- flags: no-writes; after: context entries groups consumers
-- Answers the place of the item ARGV[5] for the group ARGV[4]: {user, 0} while it is pending at a user, else {false,
-- number of items before it}; false when the item is not visible.

local S = open_stream(PREFIX)
if not S then
  return {'gone'}
end
local id = ARGV[5]
if not entries.visible(S, id) then
  return {'ok', false}
end
local G = groups.get(S, ARGV[4])
local number = tonumber(G and call('HGET', G.g .. 'pend', id) or 0)
if number ~= 0 then
  return {'ok', {consumers.read_session(S, number).user, 0}}
end
local mine, rank = entries.priority(S, id), entries.rank(S, id)
local ahead = 0
for _, priority in ipairs(entries.classes(S)) do
  if priority > mine then
    ahead = ahead + call('ZCARD', entries.level(S, priority))
  elseif priority == mine then
    ahead = ahead + call('ZLEXCOUNT', entries.level(S, priority), '-', '(' .. id)
  end
end
if G then
  for _, other in ipairs(call('HKEYS', G.g .. 'pend')) do
    if entries.visible(S, other) and entries.rank(S, other) < rank then
      ahead = ahead - 1
    end
  end
  ahead = ahead - call('ZLEXCOUNT', G.g .. 'done', '-', '(' .. rank)
  for _, claimed in ipairs(call('HKEYS', S.p .. 'claims')) do
    if entries.rank(S, claimed) < rank and groups.has_committed(G, claimed) then
      ahead = ahead + 1
    end
  end
end
return {'ok', {false, ahead}}
