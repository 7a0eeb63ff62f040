-- flags: allow-oom; after:
-- KEYS[1] is the set of all streams; ARGV[1], unless it is '', is one of them. Answers all names.

if ARGV[1] ~= '' then
  redis.call('SADD', KEYS[1], ARGV[1])
end
return redis.call('SMEMBERS', KEYS[1])
