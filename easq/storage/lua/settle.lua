-- flags: allow-oom; after: stream entries groups members handout rules
-- What the caller has claimed, of ARGV[5] and on (under any of its names, which ARGV[4] begins), is gone for all groups.

local S = rules.begin()
if not S then
  return {'gone'}
end
local gone = {}
for place = 5, #ARGV do
  local owner = call('HGET', S.p .. 'claims', ARGV[place])
  if owner and string.sub(owner, 1, #ARGV[4]) == ARGV[4] then
    gone[#gone + 1] = ARGV[place]
  end
end
rules.remove(S, gone)
handout.dispatch_all(S)
return rules.finish(S, 'ok', #gone)
