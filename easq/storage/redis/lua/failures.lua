-- Failures of items: negatives, lost connections, and items that have failed too often (exhausted), for which the calling
-- server writes a dead letter (exhausted.lua, dead_letter.lua).
--
-- PREFIX doom  hash: 'GROUP\0INDEX' of an exhausted item -> delay (ms) and user of its hold if the rear store is full

local failures = {}

local LOST = 'the connection was lost'
local DEAD_LETTER_MS = 5000  -- another server writes the dead letter when the first one has not done so within this time

-- Asks the calling server to write a dead letter of the item, which no consumer gets meanwhile
function failures.request_dead_letter(G, id)
  groups.hold(G, id, NOW + DEAD_LETTER_MS, '')
  exhausted[#exhausted + 1] = G.S.p
  exhausted[#exhausted + 1] = G.name
  exhausted[#exhausted + 1] = id
end

-- Records that no dead letter of the item is needed any more
function failures.drop_exhausted(G, id)
  call('HDEL', G.S.p .. 'doom', G.name .. '\0' .. id)
end

-- Counts a failure of the item. Answers whether it was the last failure allowed: then a dead letter is requested
function failures.fail(G, id, code, reason, delay, user)
  local count = call('HINCRBY', G.g .. 'fail', id, 1)
  groups.failed(G, id, count)
  if G.marks then
    call('HDEL', G.g .. 'busy', id)
    call('HDEL', G.g .. 'fetched', id)
  end
  call('HSET', G.g .. 'why', id, cmsgpack.pack({code, reason}))
  if CONF.failures == 0 or count < CONF.failures then
    return false
  end
  call('HSET', G.S.p .. 'doom', G.name .. '\0' .. id, cmsgpack.pack({delay, user}))
  failures.request_dead_letter(G, id)
  return true
end

-- Answers the back-off (ms) after this number of failures
function failures.back_off(count)
  return CONF.backoff[math.min(count, #CONF.backoff)]
end

-- Counts the lost connection as a failure of the item. Answers whether it was the last one allowed; if not, the caller
-- holds the item
function failures.count_loss(G, id, delay, user)
  groups.unhold(G, id)
  groups.lost(G, id)
  return failures.fail(G, id, '', LOST, delay, user)
end

-- Holds an item of a lost connection for its user during the grace period. The loss counts as a failure if the process does
-- not reconnect in time or, if the consumer named no process, after CONF.free_losses losses.
function failures.lose(G, id, s)
  if s.process ~= '' then
    groups.hold(G, id, NOW + CONF.grace, s.user .. '\0' .. s.process)
  elseif groups.lost(G, id) <= CONF.free_losses
    or not failures.fail(G, id, '', LOST, CONF.grace, s.user) then
    groups.hold(G, id, NOW + CONF.grace, s.user)
  end
end

-- Counts the losses of an earlier process of the same user: it will not reconnect, as the connection `s` replaces it
function failures.count_replaced(G, s)
  local held, lost = call('HGETALL', G.g .. 'held'), {}
  for place = 1, #held, 2 do
    local user, process = groups.held_for(held[place + 1])
    if user == s.user and process ~= '' and process ~= s.process then
      lost[#lost + 1] = held[place]
    end
  end
  table.sort(lost)
  for _, id in ipairs(lost) do
    local till = tonumber(call('ZSCORE', G.S.p .. 'timers', groups.hold_timer(G, id)))
    if not failures.count_loss(G, id, till - NOW, s.user) then
      groups.hold(G, id, till, s.user)
    end
  end
end

-- Ends a hold of the item: it is ready for all consumers. If it was held for a process, counts a failure
function failures.release_hold(G, id, stood_still)
  local held = call('HGET', G.g .. 'held', id) or ''
  local user, process = groups.held_for(held)
  if user ~= '' and stood_still then
    groups.hold(G, id, NOW + CONF.grace, held)
    return
  end
  if process ~= '' then
    groups.set_failed_by(G, id, user)
    if failures.count_loss(G, id, 0, '') then
      return
    end
  else
    groups.unhold(G, id)
  end
  consumers.make_ready(G, id)
end
