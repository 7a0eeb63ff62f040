-- flags: allow-oom; after: context entries groups filters consumers retention failures dispatch stream
-- Renews the lease of the calling server at this stream, does what is due, and removes the connections and claims of
-- servers whose lease has expired.
--
-- ARGV[4] highest index that the caller knows  [5] '1': it has a long poll here  [6] '1': it has reached Redis all the time
--
-- Answers `ok` {the caller's connections, those of them that have items to fetch, the names of its claims, the other
-- servers with connections or claims, each followed by the ms until its lease expires}, or `behind`.
--
-- When no server has called for a while, Redis was away, and not the servers: then all leases are renewed. This does
-- not apply if ARGV[6] is '1'.

local S = stream.begin()
if not S then
  return {'gone'}
end
if S.last < tonumber(ARGV[4]) then
  return stream.finish(S, 'behind')
end
local unheld = call('HGET', S.p .. 'meta', 'unheld')
if unheld then
  retention.remove_free(S, unheld)
end
local servers = S.p .. 'servers'
if NOW - S.heard > CONF.lease / 2 and ARGV[6] ~= '1' then
  for _, server in ipairs(call('ZRANGE', servers, 0, -1)) do
    call('ZADD', servers, NOW + CONF.lease, server)
  end
end
set(S, 'heard', NOW)
set(S, 'ahead', NOW - CLOCK)
if call('EXISTS', S.p .. 'of:' .. SERVER) == 1 or call('ZSCORE', servers, SERVER) then
  call('ZADD', servers, NOW + CONF.lease, SERVER)
end
if ARGV[5] == '1' then
  call('HSET', S.p .. 'readers', SERVER, NOW + CONF.lease)
end
for _, server in ipairs(call('ZRANGEBYSCORE', servers, '-inf', NOW)) do
  stream.leave_server(S, server, nil)
end
dispatch.all(S)
local mine, full = {}, {}
for place, number in ipairs(call('SMEMBERS', S.p .. 'of:' .. SERVER)) do
  mine[place] = tonumber(number)
  if call('EXISTS', S.p .. 'box:' .. number) == 1 then
    full[#full + 1] = tonumber(number)
  end
end
local claims, seen = {}, {}
for _, name in ipairs(call('HVALS', S.p .. 'claims')) do
  if not seen[name] and string.sub(name, 1, #SERVER) == SERVER then
    claims[#claims + 1] = name
    seen[name] = true
  end
end
local others = call('ZRANGE', servers, 0, -1, 'WITHSCORES')
for place = 2, #others, 2 do
  others[place] = math.max(0, math.ceil(others[place] - NOW))
end
return stream.finish(S, 'ok', {mine, full, claims, others})
