-- flags: allow-oom; after: context
-- Creates the stream if it does not exist, and raises its highest index to ARGV[4] at least.
--
-- ARGV[4] highest index  [5] highest connection number  [6] highest epoch that the caller knows
--
-- If another run of Redis opened the stream (Redis was restarted, a replica was promoted, the slot has moved), or if
-- the stream has less than the caller knows, acknowledged items may be lost. Then indexes and connection numbers go on
-- above all that were ever used, and the epoch is raised.
--
-- Answers the epoch, the highest index, and the number of puts and releases ever; or `schema` and the unknown schema.

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
