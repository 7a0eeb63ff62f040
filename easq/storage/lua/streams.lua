-- flags: allow-oom; after:
-- KEYS[1] is the set of all streams; those in ARGV are among them. Without any, answers all names.

if #ARGV > 0 then
  return redis.call('SADD', KEYS[1], unpack(ARGV))
end
return redis.call('SMEMBERS', KEYS[1])
