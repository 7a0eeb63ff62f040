-- The consumer groups of a stream: what each has done with the entries, and who of it is connected.
--
-- PREFIX groups          zset: the names, in the order in which they came
-- PREFIX who             hash: connection -> its group
-- PREFIX of:SERVER       set: the connections of a server
-- PREFIX out:N           set: pending at connection N
-- PREFIX box:N           zset: of these, not yet fetched, in the order of hand-out
-- PREFIX got:N           'TOKEN:INDEX INDEX ...' of its last fetch, which may be asked for again
-- PREFIX doom            hash: 'GROUP\0INDEX' -> what becomes of the item if the rear store has no room
-- PREFIX g:GROUP: and
--   meta      hash: connected, left (when its last consumer left, while it still holds items back; -1), highest, views
--   pend      hash: index -> connection
--   done      zset, score 0: the places of the entries it has committed or given up
--   gone      set: those it gave up
--   deliv     hash: index -> how often delivered      fail  hash: index -> how often failed
--   why       hash: index -> code and reason of the last failure
--   ret       zset, score 0: places of entries that are ready again
--   alone     zset, score 0: places of entries that are ready, and go alone
--   held      hash: index -> the user that it is kept for, or ''; until when is a timer
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

-- The group, or nil when it is not known
function groups.get(S, name)
  local G = S.groups[name]
  if G == nil then
    local g = S.p .. 'g:' .. name .. ':'
    local meta = call('HMGET', g .. 'meta', 'connected', 'left', 'highest', 'views')
    G = meta[1] and {
      S = S, name = name, g = g, connected = tonumber(meta[1]), left = tonumber(meta[2]),
      highest = tonumber(meta[3]), views_made = tonumber(meta[4]),
    } or false
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
    G = {S = S, name = name, g = S.p .. 'g:' .. name .. ':', connected = 0, left = -1, highest = 0,
      views_made = 0, changed = true}
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

-- Those that hold items back: with a consumer, or with one that left a short time ago
function groups.holders(S)
  local list = {}
  for _, G in ipairs(groups.all(S)) do
    if G.connected > 0 or G.left >= 0 then
      list[#list + 1] = G
    end
  end
  return list
end

local PARTS = {'meta', 'pend', 'done', 'gone', 'deliv', 'fail', 'why', 'ret', 'alone', 'held', 'sess', 'views', 'mem'}

function groups.is_idle(G)
  if G.connected > 0 or G.left >= 0 then
    return false
  end
  return call('EXISTS', G.g .. 'done', G.g .. 'deliv', G.g .. 'fail', G.g .. 'mem', G.g .. 'held') == 0
end

function groups.leave_at(G, moment)
  local timer = 'l\0' .. G.name
  if moment >= 0 then
    call('ZADD', G.S.p .. 'timers', moment + CONF.retention, timer)
  elseif G.left >= 0 then
    call('ZREM', G.S.p .. 'timers', timer)
  end
  G.left, G.changed = moment, true
end

function groups.forget(G)
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
  return groups.failures(G, id) >= ALONE_AFTER
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

function groups.undoom(G, id)
  call('HDEL', G.S.p .. 'doom', G.name .. '\0' .. id)
end

-- The entries that all of `some` have committed, ascending, as many as this call may look at, from the place `from` on;
-- and where to go on, or nil
function groups.done_by(some, from)
  local smallest, fewest
  for _, G in ipairs(some) do
    local count = call('ZCARD', G.g .. 'done')
    if not smallest or count < fewest then
      smallest, fewest = G, count
    end
  end
  local found, rest = {}, nil
  while smallest do
    local places = call('ZRANGEBYLEX', smallest.g .. 'done', '[' .. from, '+', 'LIMIT', 0, 200)
    for _, rank in ipairs(places) do
      if not spend() then
        rest = rank
        break
      end
      local everywhere = true
      for _, G in ipairs(some) do
        everywhere = everywhere and (G == smallest or call('ZSCORE', G.g .. 'done', rank) ~= false)
      end
      if everywhere then
        found[#found + 1] = id_in(rank)
      end
    end
    if rest or #places < 200 then
      break
    end
    from = places[#places] .. '+'
  end
  table.sort(found)
  return found, rest
end
