-- flags: no-writes; after: context entries groups consumers
-- Answers the ms since the last heartbeat of the connection of the consumer ARGV[5] in the group ARGV[4]; false if it
-- has no connection, or one of the process ARGV[6].

local S = open_stream(PREFIX)
if not S then
  return {'gone'}
end
local G = groups.get(S, ARGV[4])
local m = G and consumers.get(G, ARGV[5])
local s = m and m.session ~= 0 and consumers.read_session(S, m.session)
local is_same = s and ARGV[6] ~= '' and s.process == ARGV[6]
return {'ok', m and m.session ~= 0 and not is_same and math.max(0, NOW - m.active) or false}
