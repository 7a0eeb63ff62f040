-- flags: allow-oom; after: stream
-- The stream exists, and its highest index is at least ARGV[4]. Where it was opened by another run of Redis (one started
-- anew, a replica that was promoted, the new node of a slot), or has less than the caller knows, what was acknowledged
-- may be gone: then its indexes and connections go on above all that were ever given, and the epoch is a new one.
-- ARGV[5]: the highest connection number ever seen; ARGV[6]: the highest epoch.
-- Answers the epoch, the highest index and how many items have ever come.

local known, opened_by = unpack(call('HMGET', KEYS[1], 'schema', 'run'))
if known and known ~= CONF.schema and known ~= '1' then
  return {'schema', known}
end
local run = string.match(call('INFO', 'server'), 'run_id:(%x+)')
call('HSET', KEYS[1], 'schema', CONF.schema, 'run', run)
local S = open_stream(PREFIX)
local seen, number, epoch = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local is_behind = S.last < seen or S.number < number or S.epoch < epoch
if is_behind or (opened_by and opened_by ~= run) then
  set(S, 'last', math.max(S.last, seen) + CONF.raise)
  set(S, 'number', math.max(S.number, number) + CONF.raise)
  set(S, 'epoch', math.max(S.epoch, epoch) + 1)
  call('HSET', KEYS[1], 'last', S.last, 'number', S.number, 'epoch', S.epoch)
end
return {'ok', {S.epoch, S.last, arrivals(S)}}
