-- flags: allow-oom; after: context entries groups consumers
-- Records a heartbeat of the connections ARGV[4] and on, as far as they are the calling server's.

local S = open_stream(PREFIX)
if not S then
  return {'gone'}
end
for place = 4, #ARGV do
  local s, G = consumers.read_session(S, tonumber(ARGV[place]))
  if s and s.server == SERVER then
    local m = consumers.get(G, s.user)
    m.active = NOW
    consumers.store(G, m)
  end
end
return {'ok', 0}
