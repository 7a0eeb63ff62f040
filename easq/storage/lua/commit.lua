-- flags: allow-oom; after: stream entries groups members handout rules
-- The items ARGV[5] and on are done for the group ARGV[4]; one that all groups holding it back have committed is gone.
-- Answers how many were present and not yet committed.

local S = rules.begin()
if not S then
  return {'gone'}
end
local present, met = {}, {}
for place = 5, #ARGV do
  local id = ARGV[place]
  if not met[id] and entries.present(S, id) then
    present[#present + 1] = id
  end
  met[id] = true
end
if #present == 0 then
  return rules.finish(S, 'ok', 0)
end
local G = groups.make(S, ARGV[4])
local gone, counted = {}, 0
for _, id in ipairs(present) do
  local was_given_up = call('SISMEMBER', G.g .. 'gone', id) == 1
  if was_given_up or not groups.has_done(G, id) then
    counted = counted + 1
    members.take_away(G, id)
    groups.unhold(G, id)
    groups.undoom(G, id)
    call('ZADD', G.g .. 'done', 0, entries.rank(S, id))
    if was_given_up then
      call('SREM', G.g .. 'gone', id)
      call('HDEL', S.p .. 'answers', id .. '\0' .. G.name)
    end
    if rules.is_done(S, id) then
      gone[#gone + 1] = id
    end
    S.touched = true
  end
end
rules.remove(S, gone)
if groups.is_idle(G) then
  groups.forget(G)
end
handout.dispatch_all(S)
return rules.finish(S, 'ok', counted)
