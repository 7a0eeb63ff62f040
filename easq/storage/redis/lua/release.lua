-- flags: allow-oom; after: stream entries groups members handout rules
-- What was claimed under the name ARGV[4], all of it or, if any are named, the items ARGV[5] and on, is back if it still
-- exists.

local S = rules.begin()
if not S then
  return {'gone'}
end
if #ARGV == 4 then
  rules.release_claims(S, ARGV[4])
end
for place = 5, #ARGV do
  if call('HGET', S.p .. 'claims', ARGV[place]) == ARGV[4] then
    rules.release(S, ARGV[place])
  end
end
handout.dispatch_all(S)
return rules.finish(S, 'ok', 0)
