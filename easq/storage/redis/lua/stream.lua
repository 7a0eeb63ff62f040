-- The steps of a stream that several verbs share: leaving, releasing, the time; and how a call begins and ends.

local stream = {}

-- Answers whether the stream has ended, and the group has committed everything
function stream.is_through(S, G)
  return S.ended == 1 and S.len == (G and call('ZCARD', G.g .. 'done') or 0)
end

-- Removes a connection. Its items are ready at once if it was closed (`lost` is false), and held for its user if it was
-- lost (true) or its server is gone (nil). The latter is no failure
function stream.leave(G, s, lost)
  local S, number = G.S, s.number
  local out, unsent = S.p .. 'out:' .. number, S.p .. 'box:' .. number
  if consumers.is_reserved(G, s) then
    dispatch.unreserve(G, s)
  end
  consumers.sessions(G)[number] = nil
  call('HDEL', G.g .. 'sess', number)
  call('HDEL', S.p .. 'who', number)
  call('SREM', S.p .. 'of:' .. s.server, number)
  local filter = consumers.leave_view(G, s.view)
  G.connected, G.changed = G.connected - 1, true
  if filter then
    filters.leave(G, filter)
  end
  local m = consumers.get(G, s.user)
  m.session, m.active, m.left_pending, m.index = 0, NOW, s.out > 0, s.index
  consumers.store(G, m)
  local ids = call('SMEMBERS', out)
  table.sort(ids)
  for _, id in ipairs(ids) do
    call('HDEL', G.g .. 'pend', id)
    if lost == false or call('ZSCORE', unsent, id) then
      consumers.make_ready(G, id)
    elseif lost then
      failures.lose(G, id, s)
    else
      groups.hold(G, id, NOW + CONF.grace, s.user)
    end
  end
  call('DEL', out, unsent, S.p .. 'got:' .. number, S.p .. 'kept:' .. number)
  consumers.forget_left(G)
  wake(S, number, s.server)
end

-- Removes connections and claims of a server, as many as one call may: the server stops (`lost` is false), or is gone
-- (nil), which is not a failure of its consumers
function stream.leave_server(S, server, lost)
  for _, number in ipairs(call('SMEMBERS', S.p .. 'of:' .. server)) do
    if work.left <= 0 then
      work.more = true
      return
    end
    local s, G = consumers.session(S, tonumber(number))
    if s then
      work.left = work.left - 1 - s.out
      stream.leave(G, s, lost)
    end
  end
  call('DEL', S.p .. 'of:' .. server)
  stream.release_claims(S, server .. ':')
  call('ZREM', S.p .. 'servers', server)
  call('HDEL', S.p .. 'readers', server)
end

function stream.release(S, id)
  entries.release(S, id)
  for _, G in ipairs(groups.all(S)) do
    consumers.make_ready(G, id)
  end
end

-- Releases the claims whose name begins with `owner`
function stream.release_claims(S, owner)
  local claims = call('HGETALL', S.p .. 'claims')
  for place = 1, #claims, 2 do
    if string.sub(claims[place + 1], 1, #owner) == owner then
      stream.release(S, claims[place])
    end
  end
end

-- Ends holds, filters and entries of left consumers whose time is over
function stream.tick(S)
  local due = call('ZRANGEBYSCORE', S.p .. 'timers', '-inf', NOW, 'LIMIT', 0, CONF.budget)
  if #due == 0 then
    return
  end
  -- no server has called for a while: all of them stood still, and nobody could reconnect
  local stood_still = NOW - S.heard > CONF.lease / 2
  local lapsed = false
  for _, timer in ipairs(due) do
    local kind, name = string.match(timer, '^(%a)%z([^%z]*)')
    local rest = string.sub(timer, 4 + #name)
    local G = groups.get(S, name)
    if not G then
      call('ZREM', S.p .. 'timers', timer)
    elseif kind == 'l' then
      call('ZREM', S.p .. 'timers', timer)
      lapsed = filters.lapse(G, rest) or lapsed
    elseif kind == 'm' then
      consumers.drop(G, rest)
    elseif call('HEXISTS', S.p .. 'doom', name .. '\0' .. rest) == 1 then
      failures.request_dead_letter(G, rest)
    else
      failures.release_hold(G, rest, stood_still)
    end
  end
  work.more = work.more or #due == CONF.budget
  for _, G in ipairs(groups.all(S)) do
    if groups.is_idle(G) then
      groups.forget(G)
    end
  end
  if lapsed then
    retention.remove_free(S, '')
  end
  dispatch.all(S)
end

-- Answers the stream that KEYS[1] names after doing what is due; nil when it does not exist
function stream.begin()
  local S = open_stream(PREFIX)
  if S then
    stream.tick(S)
  end
  return S
end

-- Makes this call write something. WAIT waits for the last write of the caller's own connection; the answer may depend
-- on what another server has written
function stream.write_for_wait(S)
  S.changed.epoch = true
end

-- Saves what has changed, and answers: the status; the answer of the verb; PREFIX, GROUP and index, flat, of the items
-- that need a dead letter; the caller's connections to wake; ms until something is due (-1: nothing); whether to call
-- `tick` at once; the number of puts and releases ever; the highest index; the epoch; the new items, as PREFIX, index
-- and tags, flat
function stream.finish(S, status, answer)
  for _, one in pairs(streams) do
    if one.ended == 1 and one.has_changed then
      for _, G in ipairs(groups.all(one)) do
        for number, s in pairs(consumers.sessions(G)) do
          wake(one, number, s.server)
        end
      end
    end
    consumers.save(one)
    local fields = {}
    for name in pairs(one.changed) do
      fields[#fields + 1] = name
      fields[#fields + 1] = one[name]
    end
    if #fields > 0 then
      call('HSET', one.p .. 'meta', unpack(fields))
    end
  end
  publish()
  local due = call('ZRANGE', S.p .. 'timers', 0, 0, 'WITHSCORES')[2]
  local mine, came = {}, {}
  for _, one in pairs(streams) do
    for _, item in ipairs(one.quiet and {} or one.fresh) do
      came[#came + 1] = one.p
      came[#came + 1] = item[1]
      came[#came + 1] = item[2]
    end
  end
  for prefix, numbers in pairs(woken[SERVER] or {}) do
    mine[#mine + 1] = {prefix, numbers_in(numbers)}
  end
  local left = due and math.max(0, math.ceil(due - NOW)) or -1
  return {status, answer or 0, exhausted, mine, left, work.more and 1 or 0, arrivals(S), S.last, S.epoch, came}
end
