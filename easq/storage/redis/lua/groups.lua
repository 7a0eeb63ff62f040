-- The consumer groups of a stream, and the state of the entries in each group.
--
-- PREFIX groups          zset: the names, in the order of creation
-- PREFIX who             hash: connection -> its group
-- PREFIX of:SERVER       set: the connections of a server
-- PREFIX out:N           set: the items pending at connection N
-- PREFIX box:N           zset: those of them that are not fetched yet, in the order of dispatch
-- PREFIX kept:N          zset, score 0: ranks of items held for the user of connection N, which gets them one by one
-- PREFIX got:N           'TOKEN:INDEX INDEX ...' of its last fetch, which may be repeated
-- PREFIX g:GROUP: and
--   meta      hash: connected, highest, views; filters (a packed list: the packed tags of a filter, the time at which its
--             last consumer left or -1 while one is connected, and so on); marks ('1': one of loss, busy, solo
--             and by is not empty); before schema 2: left, the time at which the last consumer left
--   pend      hash: index -> connection
--   done      zset, score 0: the ranks of the entries that it has committed or given up
--   gone      set: those that it gave up
--   deliv     hash: index -> number of deliveries      fail  hash: index -> number of failures
--   why       hash: index -> code and reason of the last failure
--   loss      hash: index -> number of lost connections
--   busy      hash: index -> ms that it was busy since its last failure: it waited, or was at a consumer that then reported
--             busy again
--   fetched   hash: index -> time at which a consumer got an item that was busy before
--   solo      set: items that are delivered alone
--   by        hash: index -> the user that failed it last: another user gets it, if there is one
--   ret       zset, score 0: ranks of entries that are ready again
--   alone     zset, score 0: ranks of entries that are ready and delivered alone
--   els:USER  zset, score 0: ranks of entries that are ready again, for users other than USER
--   elsers    set: the users that have an els:USER
--   held      hash: index -> the user for whom it is held, or ''; 'USER\0PROCESS' if it counts as failed unless that process
--             reconnects; a timer has the end
--   sess      hash: connection -> what the dispatcher needs of it
--   views     hash: number -> start and filter of connections; cur:NUMBER  hash: how far they have been scanned:
--             priority -> index, 'r' -> rank in `ret`
--   mem       hash: user -> a consumer as attributes list it

local groups = {}

local ALONE_AFTER = 2  -- failures after which an item is delivered alone

function groups.names(S)
  S.names = S.names or call('ZRANGE', S.p .. 'groups', 0, -1)
  return S.names
end

-- Answers the filters of a group that schema 1 stored: those of its connections, or one without tags after the last left
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

-- Answers the group, or nil when it is not known
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

-- Records whether loss, busy, solo or by has an entry: without one, calls need not read them
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

function groups.has_committed(G, id)
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

-- Records the time at which a consumer got those of the items that were busy before
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

-- Counts a lost connection of the item, which is delivered alone from now on; answers the number of losses
function groups.lost(G, id)
  groups.mark(G, true)
  call('SADD', G.g .. 'solo', id)
  return call('HINCRBY', G.g .. 'loss', id, 1)
end

-- Answers the user that failed the item last, or nil
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
    and not groups.has_committed(G, id)
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

-- Answers the user for whom an item is held, and the process that has to reconnect ('': none)
function groups.held_for(held)
  local user, process = string.match(held, '^([^%z]*)%z(.*)$')
  return user or held, process or ''
end

