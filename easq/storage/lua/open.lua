-- flags: allow-oom; after: stream
-- The stream exists, and its highest index is at least ARGV[4]. With ARGV[5] = '1' what was there is known to be gone
-- or older than it was: then its indexes and connections go on above all that were ever given, and the epoch is a new
-- one, unless another server has just seen to that. ARGV[6]: the highest connection number ever seen.
-- Answers the epoch, the highest index and how many items have ever come.

local known = call('HGET', KEYS[1], 'schema')
if known and known ~= CONF.schema then
  return {'schema', known}
end
call('HSET', KEYS[1], 'schema', CONF.schema)
local S = open_stream(PREFIX)
local seen, number = tonumber(ARGV[4]), tonumber(ARGV[6])
local raised = tonumber(call('HGET', KEYS[1], 'raised') or 0)
local is_behind = S.last < seen or S.number < number
if is_behind or (ARGV[5] == '1' and NOW - raised > CONF.lease) then
  set(S, 'last', math.max(S.last, seen) + CONF.raise)
  set(S, 'number', math.max(S.number, number) + CONF.raise)
  set(S, 'epoch', S.epoch + 1)
  call('HSET', KEYS[1], 'raised', NOW, 'last', S.last, 'number', S.number, 'epoch', S.epoch)
end
return {'ok', {S.epoch, S.last, arrivals(S)}}
