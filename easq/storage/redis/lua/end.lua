-- flags: allow-oom; after: stream entries groups members handout rules
-- The stream's end mark is ARGV[4], '1' or '0'.

local S = rules.begin()
if not S then
  return {'gone'}
end
set(S, 'ended', tonumber(ARGV[4]))
S.touched = true
return rules.finish(S, 'ok', 0)
