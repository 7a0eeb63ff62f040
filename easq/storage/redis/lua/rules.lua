-- The steps that several verbs share: leaving, failing, removing, the time; and how a call ends.

local rules = {}

local LOST = 'the connection was lost'
local DOOM_MS = 5000  -- a server that was to bury an item and did not within this time is not waited for

-- Entries that are gone for all groups
function rules.remove(S, ids)
  in_parts(ids, function(part)
    for _, G in ipairs(groups.all(S)) do
      members.forget_items(G, part)
    end
    entries.remove(S, part)
    S.touched = true
  end)
end

-- Entries that their groups are done with are gone; those that nobody committed are answered in the sink, with what
-- the group `last` has to say, if there is one, else the last one that gave the item up
function rules.retire(S, ids, last)
  for _, id in ipairs(ids) do
    local answer, answer_of
    for _, G in ipairs(groups.all(S)) do
      if groups.has_done(G, id) then
        if call('SISMEMBER', G.g .. 'gone', id) == 1 then
          if not (last and answer and answer_of == last) then
            answer = call('HGET', S.p .. 'answers', id .. '\0' .. G.name) or answer
            answer_of = G.name
          end
        else
          answer = nil
          break
        end
      end
    end
    if answer then
      local f = cmsgpack.unpack(answer)
      local sink = open_stream(f[1])
      if sink then
        entries.store(sink, 0, f[2], f[3])
      end
    end
  end
  rules.remove(S, ids)
end

-- Removes the entries that a group has committed and no group retains, from the place `from` on. What this call's budget
-- does not cover is left to the next `tick`.
function rules.remove_unheld(S, from)
  local found, met = {}, {}
  local rest = groups.each_done(S, from, function(id)
    if not met[id] and groups.holder(S, id) == groups.NOBODY then
      found[#found + 1] = id
    end
    met[id] = true
  end)
  table.sort(found)
  rules.retire(S, found)
  if rest then
    call('HSET', S.p .. 'meta', 'unheld', rest)
  else
    call('HDEL', S.p .. 'meta', 'unheld')
  end
end

-- Records that a consumer with these packed tags is connected. If it had others `before` that no other consumer has, their
-- filter ends: it will not return for those items.
function rules.take_filter(G, filter, before)
  groups.connect_filter(G, filter)
  if not before or before == filter or (G.filters[before] or -1) < 0 then
    return
  end
  for _, m in ipairs(members.all(G)) do
    if m.filter == before then
      return
    end
  end
  groups.drop_filter(G, before)
  rules.remove_unheld(G.S, '')
end

function rules.is_through(S, G)
  return S.ended == 1 and S.len == (G and call('ZCARD', G.g .. 'done') or 0)
end

-- One failure more. Whether it was the last: then the caller is asked to bury the item, which goes to nobody meanwhile
function rules.fail(G, id, code, reason, delay, user)
  local failures = call('HINCRBY', G.g .. 'fail', id, 1)
  groups.failed(G, id, failures)
  if G.marks then
    call('HDEL', G.g .. 'busy', id)
    call('HDEL', G.g .. 'fetched', id)
  end
  call('HSET', G.g .. 'why', id, cmsgpack.pack({code, reason}))
  if CONF.failures == 0 or failures < CONF.failures then
    return false
  end
  call('HSET', G.S.p .. 'doom', G.name .. '\0' .. id, cmsgpack.pack({delay, user}))
  groups.hold(G, id, NOW + DOOM_MS, '')
  doomed[#doomed + 1] = G.S.p
  doomed[#doomed + 1] = G.name
  doomed[#doomed + 1] = id
  return true
end

function rules.back_off(failures)
  return CONF.backoff[math.min(failures, #CONF.backoff)]
end

-- Counts the lost connection as a failure of the item. Answers whether the item is given up; if not, the caller holds it
function rules.count_loss(G, id, delay, user)
  groups.unhold(G, id)
  groups.lost(G, id)
  return rules.fail(G, id, '', LOST, delay, user)
end

-- Holds an item of a lost connection for its user for the grace period. The loss counts as a failure when the process does
-- not reconnect in time or, if the consumer named none, when there were more than CONF.free_losses.
local function lose(G, id, s)
  if s.process ~= '' then
    groups.hold(G, id, NOW + CONF.grace, s.user .. '\0' .. s.process)
  elseif groups.lost(G, id) <= CONF.free_losses
    or not rules.fail(G, id, '', LOST, CONF.grace, s.user) then
    groups.hold(G, id, NOW + CONF.grace, s.user)
  end
end

-- Counts the losses of an earlier process of the same user: it will not reconnect, as the connection `s` replaces it
function rules.lose_to(G, s)
  local held, lost = call('HGETALL', G.g .. 'held'), {}
  for place = 1, #held, 2 do
    local user, process = groups.kept_for(held[place + 1])
    if user == s.user and process ~= '' and process ~= s.process then
      lost[#lost + 1] = held[place]
    end
  end
  table.sort(lost)
  for _, id in ipairs(lost) do
    local till = tonumber(call('ZSCORE', G.S.p .. 'timers', groups.hold_timer(G, id)))
    if not rules.count_loss(G, id, till - NOW, s.user) then
      groups.hold(G, id, till, s.user)
    end
  end
end

-- Removes a connection. Its items are ready at once if it was closed (`lost` is false), and held for its user if it was
-- lost (true) or its server is gone (nil); the latter is no failure
function rules.leave(G, s, lost)
  local S, number = G.S, s.number
  local out, box = S.p .. 'out:' .. number, S.p .. 'box:' .. number
  if members.is_reserved(G, s) then
    handout.unreserve(G, s)
  end
  members.sessions(G)[number] = nil
  call('HDEL', G.g .. 'sess', number)
  call('HDEL', S.p .. 'who', number)
  call('SREM', S.p .. 'of:' .. s.server, number)
  local filter = members.leave_view(G, s.view)
  G.connected, G.changed = G.connected - 1, true
  if filter then
    groups.leave_filter(G, filter)
  end
  local m = members.get(G, s.user)
  m.session, m.active, m.left_pending, m.index = 0, NOW, s.out > 0, s.index
  members.keep(G, m)
  local ids = call('SMEMBERS', out)
  table.sort(ids)
  for _, id in ipairs(ids) do
    call('HDEL', G.g .. 'pend', id)
    if lost == false or call('ZSCORE', box, id) then
      members.put_back(G, id)
    elseif lost then
      lose(G, id, s)
    else
      groups.hold(G, id, NOW + CONF.grace, s.user)
    end
  end
  call('DEL', out, box, S.p .. 'got:' .. number, S.p .. 'kept:' .. number)
  members.forget_left(G)
  wake(S, number, s.server)
end

-- Removes the connections and claims of a server, as many as one call may: it stops (`lost` is false), or is gone (nil),
-- which is not its consumers' fault
function rules.leave_server(S, server, lost)
  for _, number in ipairs(call('SMEMBERS', S.p .. 'of:' .. server)) do
    if work.left <= 0 then
      work.more = true
      return
    end
    local s, G = members.session(S, tonumber(number))
    if s then
      work.left = work.left - 1 - s.out
      rules.leave(G, s, lost)
    end
  end
  call('DEL', S.p .. 'of:' .. server)
  rules.release_claims(S, server .. ':')
  call('ZREM', S.p .. 'servers', server)
  call('HDEL', S.p .. 'readers', server)
end

function rules.release(S, id)
  entries.release(S, id)
  for _, G in ipairs(groups.all(S)) do
    members.put_back(G, id)
  end
end

-- Claims whose owner begins so are given up
function rules.release_claims(S, owner)
  local claims = call('HGETALL', S.p .. 'claims')
  for place = 1, #claims, 2 do
    if string.sub(claims[place + 1], 1, #owner) == owner then
      rules.release(S, claims[place])
    end
  end
end

-- Makes the held item ready for all consumers; counts a failure if it was held for a process
local function release_hold(G, id, stood_still)
  local held = call('HGET', G.g .. 'held', id) or ''
  local user, process = groups.kept_for(held)
  if user ~= '' and stood_still then
    groups.hold(G, id, NOW + CONF.grace, held)
    return
  end
  if process ~= '' then
    groups.set_failed_by(G, id, user)
    if rules.count_loss(G, id, 0, '') then
      return
    end
  else
    groups.unhold(G, id)
  end
  members.put_back(G, id)
end

-- Holds that are over are ready, groups absent for too long hold nothing back, consumers that left long ago are
-- forgotten
function rules.tick(S)
  local due = call('ZRANGEBYSCORE', S.p .. 'timers', '-inf', NOW, 'LIMIT', 0, CONF.budget)
  if #due == 0 then
    return
  end
  -- no server has called for long: all stood still, and nobody could reconnect
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
      lapsed = groups.lapse(G, rest) or lapsed
    elseif kind == 'm' then
      members.drop(G, rest)
    elseif call('HEXISTS', S.p .. 'doom', name .. '\0' .. rest) == 1 then
      groups.hold(G, rest, NOW + DOOM_MS, '')
      doomed[#doomed + 1] = S.p
      doomed[#doomed + 1] = name
      doomed[#doomed + 1] = rest
    else
      release_hold(G, rest, stood_still)
    end
  end
  work.more = work.more or #due == CONF.budget
  for _, G in ipairs(groups.all(S)) do
    if groups.is_idle(G) then
      groups.forget(G)
    end
  end
  if lapsed then
    rules.remove_unheld(S, '')
  end
  handout.dispatch_all(S)
end

-- The stream that KEYS[1] names, at this moment; what is due is done
function rules.begin()
  local S = open_stream(PREFIX)
  if S then
    rules.tick(S)
  end
  return S
end

-- What is answered may be what another's call has stored. WAIT waits for what the caller's own connection wrote last: it
-- writes something, then, whatever it finds.
function rules.affirm(S)
  S.changed.epoch = true
end

-- What a call answers: the status; what the verb says; PREFIX, GROUP and index, flat, of what has to be buried; the
-- caller's connections that have something to look at; ms until something is due (-1: nothing); whether to call `tick`
-- at once; how many items have ever come; the highest index; the epoch; the items that came, as PREFIX, index and tags,
-- flat.
function rules.finish(S, status, answer)
  for _, one in pairs(streams) do
    if one.ended == 1 and one.touched then
      for _, G in ipairs(groups.all(one)) do
        for number, s in pairs(members.sessions(G)) do
          wake(one, number, s.server)
        end
      end
    end
    members.save(one)
    local fields = {}
    for name in pairs(one.changed) do
      fields[#fields + 1] = name
      fields[#fields + 1] = one[name]
    end
    if #fields > 0 then
      call('HSET', one.p .. 'meta', unpack(fields))
    end
  end
  tell()
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
  return {status, answer or 0, doomed, mine, left, work.more and 1 or 0, arrivals(S), S.last, S.epoch, came}
end
