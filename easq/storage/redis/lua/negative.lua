-- flags: allow-oom; after: context entries groups filters consumers retention failures dispatch stream
-- Makes those of the items ARGV[8] and on that are pending in the group ARGV[4] ready again after their back-off, for
-- another consumer if there is one. Answers how many there were.
--
-- ARGV[5] code  [6] reason  [7] ms that busy items wait, or ''
--
-- Code CONF.shutdown: the consumer gets no more items, and no failure is counted. Code CONF.busy: a failure is counted
-- only once the item was busy for CONF.busy_limit in all.

local S = stream.begin()
if not S then
  return {'gone'}
end
stream.write_for_wait(S)
local G = groups.get(S, ARGV[4])
if not G then
  return stream.finish(S, 'ok', 0)
end
local counted, stopped = 0, {}

-- Answers how many ms a busy item has to wait; nil when it has reached the limit. If it was busy before, the time that it
-- was at the consumer counts: a worker keeps it until it may ask the model again.
local function busy_for(id)
  local waited = tonumber(call('HGET', G.g .. 'busy', id) or 0)
  local fetched = waited > 0 and call('HGET', G.g .. 'fetched', id)
  if fetched then
    waited = call('HINCRBY', G.g .. 'busy', id, math.max(0, NOW - fetched))
    call('HDEL', G.g .. 'fetched', id)
  end
  if CONF.busy_limit > 0 and waited >= CONF.busy_limit then
    return nil
  end
  local delay = tonumber(ARGV[7]) or math.min(math.max(waited, CONF.busy_first), CONF.busy_most)
  return CONF.busy_limit > 0 and math.min(delay, CONF.busy_limit - waited) or delay
end

for place = 8, #ARGV do
  local id = ARGV[place]
  local number = groups.owner(G, id)
  if number ~= 0 then
    counted = counted + 1
    consumers.end_delivery(G, {id})
    if ARGV[5] == CONF.shutdown then
      stopped[number] = true
      consumers.make_ready(G, id)
    else
      groups.set_failed_by(G, id, consumers.sessions(G)[number].user)
      local delay = ARGV[5] == CONF.busy and busy_for(id)
      local is_last = false
      if delay then
        call('HINCRBY', G.g .. 'busy', id, math.max(1, delay))  -- with 0 it would not count as busy
      else
        delay = failures.back_off(groups.failures(G, id) + 1)
        is_last = failures.fail(G, id, ARGV[5] == CONF.busy and CONF.busy_status or ARGV[5], ARGV[6], delay, '')
      end
      if not is_last and delay > 0 then
        groups.hold(G, id, NOW + delay, '')
      elseif not is_last then
        consumers.make_ready(G, id)
      end
    end
  end
end
for number in pairs(stopped) do
  dispatch.stop(G, consumers.sessions(G)[number])
end
dispatch.group(G)
return stream.finish(S, 'ok', counted)
