-- flags: allow-oom; after: stream entries groups members handout rules
-- Of the items ARGV[5] and on, what is claimed under the name ARGV[4] is gone for all groups.

local S = rules.begin()
if not S then
  return {'gone'}
end
local gone = {}
for place = 5, #ARGV do
  if call('HGET', S.p .. 'claims', ARGV[place]) == ARGV[4] then
    gone[#gone + 1] = ARGV[place]
  end
end
rules.remove(S, gone)
handout.dispatch_all(S)
return rules.finish(S, 'ok', #gone)
