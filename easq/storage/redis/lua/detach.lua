-- flags: allow-oom; after: stream entries groups members handout rules
-- The connection ARGV[4] is gone: lost (ARGV[5] = '1') or closed. A number that is not the caller's is left alone.

local S = rules.begin()
if not S then
  return {'gone'}
end
local s, G = members.session(S, tonumber(ARGV[4]))
if s and s.server == SERVER then
  rules.leave(G, s, ARGV[5] == '1')
  handout.dispatch(G)
end
return rules.finish(S, 'ok', 0)
