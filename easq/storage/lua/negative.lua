-- flags: allow-oom; after: stream entries groups members handout rules
-- Of the items ARGV[7] and on those pending in the group ARGV[4] are ready again after the back-off of their failures.
-- ARGV[5] code, [6] reason. A consumer that says CONF.shutdown gets nothing more, and nothing counts as failed.

local S = rules.begin()
if not S then
  return {'gone'}
end
rules.affirm(S)
local G = groups.get(S, ARGV[4])
if not G then
  return rules.finish(S, 'ok', 0)
end
local counted, stopped = 0, {}
for place = 7, #ARGV do
  local id = ARGV[place]
  local number = groups.owner(G, id)
  if number ~= 0 then
    counted = counted + 1
    members.take_away(G, {id})
    if ARGV[5] == CONF.shutdown then
      stopped[number] = true
      members.put_back(G, id)
    else
      local delay = rules.back_off(groups.failures(G, id) + 1)
      if not rules.fail(G, id, ARGV[5], ARGV[6], delay, '') then
        if delay > 0 then
          groups.hold(G, id, NOW + delay, '')
        else
          members.put_back(G, id)
        end
      end
    end
  end
end
for number in pairs(stopped) do
  handout.stop(G, members.sessions(G)[number])
end
handout.dispatch(G)
return rules.finish(S, 'ok', counted)
