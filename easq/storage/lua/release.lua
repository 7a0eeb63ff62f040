-- flags: allow-oom; after: stream entries groups members handout rules
-- What the caller has claimed under ARGV[4] (all of it), or of ARGV[5] and on (under any of its names, which ARGV[4]
-- begins), is back if it still exists.

local S = rules.begin()
if not S then
  return {'gone'}
end
if #ARGV == 4 then
  rules.release_claims(S, ARGV[4])
end
for place = 5, #ARGV do
  local owner = call('HGET', S.p .. 'claims', ARGV[place])
  if owner and string.sub(owner, 1, #ARGV[4]) == ARGV[4] then
    rules.release(S, ARGV[place])
  end
end
handout.dispatch_all(S)
return rules.finish(S, 'ok', 0)
