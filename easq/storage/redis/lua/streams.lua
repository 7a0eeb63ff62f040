-- flags: allow-oom; after:
-- Adds the names in ARGV to KEYS[1], the set of all streams. Without ARGV, answers all names.

if #ARGV > 0 then
  return redis.call('SADD', KEYS[1], unpack(ARGV))
end
return redis.call('SMEMBERS', KEYS[1])
