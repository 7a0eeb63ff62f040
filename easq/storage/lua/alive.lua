-- flags: allow-oom; after:
-- The calling server ARGV[1] is alive for ARGV[3] ms more, by the clock of Redis or, unless it is '', at ARGV[2] (ms); for
-- -1 it stops. KEYS[1] is a zset: server -> until when it counts as alive (ms).
-- Answers the servers that are alive, and those that were not heard from in time.

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
  -- by then everybody has seen that they are gone
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - 100 * lease)
end
return {
  redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf'), redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now),
}
