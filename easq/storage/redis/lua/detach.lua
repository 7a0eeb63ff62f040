-- flags: allow-oom; after: context entries groups filters consumers retention failures dispatch stream
-- Removes the connection ARGV[4]: lost (ARGV[5] = '1') or closed. The number of another server's connection is ignored.

local S = stream.begin()
if not S then
  return {'gone'}
end
local s, G = consumers.session(S, tonumber(ARGV[4]))
if s and s.server == SERVER then
  stream.leave(G, s, ARGV[5] == '1')
  dispatch.group(G)
end
return stream.finish(S, 'ok', 0)
