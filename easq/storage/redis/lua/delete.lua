-- flags: allow-oom; after: stream entries groups members handout rules
-- The items ARGV[4] and on are gone for all groups; answers how many were present.

local S = rules.begin()
if not S then
  return {'gone'}
end
rules.affirm(S)
local gone, met = {}, {}
for place = 4, #ARGV do
  local id = ARGV[place]
  if not met[id] and entries.present(S, id) then
    gone[#gone + 1] = id
  end
  met[id] = true
end
rules.remove(S, gone)
handout.dispatch_all(S)
return rules.finish(S, 'ok', #gone)
