-- The consumer groups of a stream: what each has done with the entries, and who of it is connected.
--
-- PREFIX groups          zset: the names, in the order in which they came
-- PREFIX who             hash: connection -> its group
-- PREFIX of:SERVER       set: the connections of a server
-- PREFIX out:N           set: pending at connection N
-- PREFIX kept:N          zset, score 0: places of items held for the user of connection N, which gets them one at a time
-- PREFIX box:N           zset: of these, not yet fetched, in the order of hand-out
-- PREFIX got:N           'TOKEN:INDEX INDEX ...' of its last fetch, which may be asked for again
-- PREFIX doom            hash: 'GROUP\0INDEX' -> what becomes of the item if the rear store has no room
-- PREFIX g:GROUP: and
--   meta      hash: connected, highest, views; filters (a packed list: the packed tags of a filter, when its last
--             consumer left or -1 while one is connected, and so on); marks ('1': one of loss, busy, solo
--             and by is not empty); before schema 2: left, when the last consumer left
--   pend      hash: index -> connection
--   done      zset, score 0: the places of the entries it has committed or given up
--   gone      set: those it gave up
--   deliv     hash: index -> how often delivered      fail  hash: index -> how often failed
--   why       hash: index -> code and reason of the last failure
--   loss      hash: index -> how often its connection was lost
--   busy      hash: index -> how long it was busy since its last failure, in ms: it waited, or was at a consumer that
--             then said so again
--   fetched   hash: index -> when a consumer got an item that was busy before
--   solo      set: those that go alone
--   by        hash: index -> the user that failed it last: another user gets it, if there is one
--   ret       zset, score 0: places of entries that are ready again
--   alone     zset, score 0: places of entries that are ready, and go alone
--   els:USER  zset, score 0: places of entries that are ready again, for users other than USER
--   elsers    set: the users that have an els:USER
--   held      hash: index -> the user that it is kept for, or ''; 'USER\0PROCESS' if it counts as failed unless that
--             process reconnects; a timer has the end
--   sess      hash: connection -> what the hand-out needs of it
--   views     hash: number -> start and tag filter of connections; cur:NUMBER  hash: how far they have looked:
--             class -> index, 'r' -> place in `ret`
--   mem       hash: user -> a consumer as attributes list it

local groups = {}

local ALONE_AFTER = 2  -- an item that failed so often is handed out alone

function groups.names(S)
  S.names = S.names or call('ZRANGE', S.p .. 'groups', 0, -1)
  return S.names
end

-- The filters of a group that schema 1 stored: those of its connections, or one without tags since its last one left
local function filters_before(g, connected, left)
  local found = {}
  if connected > 0 then
    for _, text in ipairs(call('HVALS', g .. 'views')) do
      found[cmsgpack.unpack(text)[2]] = -1
    end
  elseif left and left >= 0 then
    found[''] = left
  end
  return found
end

local function filters_in(text)
  local found, f = {}, cmsgpack.unpack(text)
  for place = 1, #f, 2 do
    found[f[place]] = f[place + 1]
  end
  return found
end

function groups.filters_text(G)
  if G.packed then
    return G.packed
  end
  local f = {}
  for filter, left in pairs(G.filters) do
    f[#f + 1] = filter
    f[#f + 1] = left
  end
  return cmsgpack.pack(f)
end

-- A group may have many filters, and most calls need none: they are unpacked on first use
local lazily = {__index = function(G, name)
  if name == 'filters' then
    rawset(G, name, filters_in(G.packed))
    return rawget(G, name)
  end
end}

-- The group, or nil when it is not known
function groups.get(S, name)
  local G = S.groups[name]
  if G == nil then
    local g = S.p .. 'g:' .. name .. ':'
    local meta = call('HMGET', g .. 'meta', 'connected', 'highest', 'views', 'filters', 'left', 'marks')
    G = meta[1] and {
      S = S, name = name, g = g, connected = tonumber(meta[1]), highest = tonumber(meta[2]),
      views_made = tonumber(meta[3]), wanted = {}, marks = meta[6] == '1',
    } or false
    if G and meta[4] then
      G.packed = meta[4]
      setmetatable(G, lazily)
    elseif G then
      G.filters = filters_before(g, G.connected, tonumber(meta[5]))
    end
    S.groups[name] = G
  end
  return G or nil
end

function groups.make(S, name)
  local G = groups.get(S, name)
  if not G then
    local last = call('ZREVRANGE', S.p .. 'groups', 0, 0, 'WITHSCORES')
    call('ZADD', S.p .. 'groups', (last[2] or 0) + 1, name)
    S.names = nil
    G = {S = S, name = name, g = S.p .. 'g:' .. name .. ':', connected = 0, highest = 0, views_made = 0,
      filters = {}, wanted = {}, changed = true}
    S.groups[name] = G
  end
  return G
end

function groups.all(S)
  local list = {}
  for place, name in ipairs(groups.names(S)) do
    list[place] = groups.get(S, name)
  end
  return list
end

local PARTS = {'meta', 'pend', 'done', 'gone', 'deliv', 'fail', 'why', 'ret', 'alone', 'held', 'sess', 'views', 'mem',
  'loss', 'busy', 'fetched', 'solo', 'by'}

function groups.is_idle(G)
  if G.connected > 0 or next(G.filters) then
    return false
  end
  return call('EXISTS', G.g .. 'done', G.g .. 'deliv', G.g .. 'fail', G.g .. 'mem', G.g .. 'held') == 0
end

-- -- what a group retains ------------------------------------------------------------------------------------------

local MOST_ABSENT = 64  -- most separate filters whose consumers left; one that matches everything replaces more

local function lapse_timer(G, filter)
  return 'l\0' .. G.name .. '\0' .. filter
end

function groups.drop_filter(G, filter)
  if G.filters[filter] ~= -1 then
    call('ZREM', G.S.p .. 'timers', lapse_timer(G, filter))
  end
  G.filters[filter], G.changed, G.packed = nil, true, nil
end

-- Records that a consumer with these packed tags is connected
function groups.connect_filter(G, filter)
  if G.filters[filter] ~= -1 then
    groups.drop_filter(G, filter)
    G.filters[filter] = -1
  end
end

local function set_absent(G, filter)
  G.filters[filter], G.changed, G.packed = NOW, true, nil
  call('ZADD', G.S.p .. 'timers', NOW + CONF.retention, lapse_timer(G, filter))
end

-- Removes the filters whose last consumer left; answers whether there were any
function groups.drop_absent(G)
  local absent = {}
  for filter, left in pairs(G.filters) do
    if left >= 0 then
      absent[#absent + 1] = filter
    end
  end
  for _, filter in ipairs(absent) do
    groups.drop_filter(G, filter)
  end
  return #absent > 0
end

-- Records that the last consumer with these packed tags left. Too many such filters become one that matches everything.
function groups.leave_filter(G, filter)
  set_absent(G, filter)
  local count = 0
  for _, left in pairs(G.filters) do
    count = count + (left >= 0 and 1 or 0)
  end
  if count > MOST_ABSENT then
    groups.drop_absent(G)
    if not G.filters[''] then
      set_absent(G, '')
    end
  end
end

-- Removes a filter whose timer is due, unless a consumer used it meanwhile; answers whether it was removed
function groups.lapse(G, filter)
  local left = G.filters[filter]
  if not left or left < 0 then
    return false
  end
  if left + CONF.retention > NOW then
    call('ZADD', G.S.p .. 'timers', left + CONF.retention, lapse_timer(G, filter))
    return false
  end
  groups.drop_filter(G, filter)
  return true
end

groups.NOBODY, groups.ABSENT, groups.CONNECTED = 0, 1, 2

-- Who retains an entry with these tags in the group: a connected consumer, an absent one, or nobody
local function filter_holder(G, tags)
  local found = groups.NOBODY
  for filter, left in pairs(G.filters) do
    G.wanted[filter] = G.wanted[filter] or tags_in(filter, 1)
    if carries(tags, G.wanted[filter]) then
      if left < 0 then
        return groups.CONNECTED
      end
      found = groups.ABSENT
    end
  end
  return found
end

-- Who retains the entry, in all groups except `but`: nobody, only filters of absent consumers, or a connected consumer
function groups.holder(S, id, but)
  local found, filtered = groups.NOBODY, {}
  for _, G in ipairs(groups.all(S)) do
    if G ~= but and next(G.filters) and not groups.has_done(G, id) then
      local everything = G.filters['']
      if everything == -1 then
        return groups.CONNECTED
      elseif everything then
        found = groups.ABSENT
      end
      filtered[#filtered + 1] = G
    end
  end
  for _, G in ipairs(filtered) do
    if next(G.filters, next(G.filters)) or not G.filters[''] then
      found = math.max(found, filter_holder(G, entries.tags(S, id)))
    end
  end
  return found
end

-- Records whether loss, busy, solo or by has an entry: without one, most calls need not read them
function groups.mark(G, marks)
  if G.marks ~= marks then
    G.marks, G.changed = marks, true
  end
end

function groups.forget_elsewhere(G)
  for _, user in ipairs(call('SMEMBERS', G.g .. 'elsers')) do
    call('DEL', G.g .. 'els:' .. user)
  end
  call('DEL', G.g .. 'elsers')
end

function groups.forget(G)
  groups.forget_elsewhere(G)
  for _, part in ipairs(PARTS) do
    call('DEL', G.g .. part)
  end
  call('ZREM', G.S.p .. 'groups', G.name)
  G.S.groups[G.name] = false
  G.S.names = nil
end

-- -- items ----------------------------------------------------------------------------------------------------------

function groups.owner(G, id)
  return tonumber(call('HGET', G.g .. 'pend', id) or 0)
end

function groups.has_done(G, id)
  return call('ZSCORE', G.g .. 'done', entries.rank(G.S, id)) ~= false
end

function groups.failures(G, id)
  return tonumber(call('HGET', G.g .. 'fail', id) or 0)
end

function groups.goes_alone(G, id)
  return G.marks and call('SISMEMBER', G.g .. 'solo', id) == 1
end

function groups.failed(G, id, failures)
  if failures >= ALONE_AFTER then
    groups.mark(G, true)
    call('SADD', G.g .. 'solo', id)
  end
end

-- Records when a consumer got those of the items that were busy before
function groups.note_busy(G, ids)
  if not G.marks then
    return
  end
  for place, busy in ipairs(call('HMGET', G.g .. 'busy', unpack(ids))) do
    if busy then
      call('HSET', G.g .. 'fetched', ids[place], NOW)
    end
  end
end

-- Counts a lost connection of the item, which goes alone from now on; answers how many there were
function groups.lost(G, id)
  groups.mark(G, true)
  call('SADD', G.g .. 'solo', id)
  return call('HINCRBY', G.g .. 'loss', id, 1)
end

-- The user that failed the item last, or nil
function groups.failed_by(G, id)
  return G.marks and call('HGET', G.g .. 'by', id) or nil
end

function groups.set_failed_by(G, id, user)
  groups.mark(G, true)
  call('HSET', G.g .. 'by', id, user)
end

function groups.unmark(G, ids)
  if not G.marks then
    return
  end
  local g = G.g
  call('HDEL', g .. 'by', unpack(ids))
  call('HDEL', g .. 'loss', unpack(ids))
  call('HDEL', g .. 'busy', unpack(ids))
  call('HDEL', g .. 'fetched', unpack(ids))
  call('SREM', g .. 'solo', unpack(ids))
  if call('EXISTS', g .. 'by', g .. 'loss', g .. 'busy', g .. 'solo') == 0 then
    groups.mark(G, false)
    groups.forget_elsewhere(G)
  end
end

function groups.is_ready(G, id)
  return entries.visible(G.S, id)
    and groups.owner(G, id) == 0
    and call('HEXISTS', G.g .. 'held', id) == 0
    and not groups.has_done(G, id)
end

function groups.hold_timer(G, id)
  return 'h\0' .. G.name .. '\0' .. id
end

function groups.hold(G, id, until_ms, user)
  call('HSET', G.g .. 'held', id, user)
  call('ZADD', G.S.p .. 'timers', until_ms, groups.hold_timer(G, id))
end

function groups.unhold(G, id)
  if call('HDEL', G.g .. 'held', id) == 1 then
    call('ZREM', G.S.p .. 'timers', groups.hold_timer(G, id))
  end
end

-- The user that a held item is kept for, and the process that has to reconnect, or ''
function groups.kept_for(held)
  local user, process = string.match(held, '^([^%z]*)%z(.*)$')
  return user or held, process or ''
end

function groups.undoom(G, id)
  call('HDEL', G.S.p .. 'doom', G.name .. '\0' .. id)
end

-- Calls `with` for each entry that a group has committed, for some twice, until the budget is spent or `with` returns
-- true. Answers where to go on, which is the next call's `from` (at first ''), or nil at the end.
function groups.each_done(S, from, with)
  local at_name, at = string.match(from, '^([^%z]*)%z(.*)$')
  local names, known = groups.names(S), false
  for _, name in ipairs(names) do
    known = known or name == at_name
  end
  for _, name in ipairs(names) do
    if not known or name == at_name then
      local done = S.p .. 'g:' .. name .. ':done'
      local cursor = known and at or ''
      known = false
      while true do
        local places = call('ZRANGEBYLEX', done, '[' .. cursor, '+', 'LIMIT', 0, 200)
        for _, rank in ipairs(places) do
          if not spend() then
            return name .. '\0' .. rank
          end
          if with(id_in(rank)) then
            return nil
          end
        end
        if #places < 200 then
          break
        end
        cursor = places[#places] .. '+'
      end
    end
  end
  return nil
end
