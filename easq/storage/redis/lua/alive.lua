-- flags: allow-oom; after:
-- Renews the lease of the server ARGV[1] for ARGV[3] ms, or ends it if ARGV[3] is -1. ARGV[2] is the present time in
-- ms; '' means the clock of Redis.
--
-- KEYS[1]  zset: server -> end of its lease (ms)
--
-- Answers the servers with a valid lease, and those whose lease has expired.

local now = tonumber(ARGV[2])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local lease = tonumber(ARGV[3])
if lease < 0 then
  redis.call('ZREM', KEYS[1], ARGV[1])
else
  redis.call('ZADD', KEYS[1], now + lease, ARGV[1])
  -- by now every server has noticed that these leases expired
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - 100 * lease)
end
return {
  redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf'), redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now),
}
