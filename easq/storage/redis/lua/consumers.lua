-- The connections of a group, the views that they share, and the consumers as attributes list them.
--
-- A view has one start, one filter, and its scan position in each priority. The keys are described in groups.lua.

local consumers = {}

local MOST_LEFT = 1000  -- most consumers that left and are still listed

-- Reads a connection. `out` is the number of items pending there; `alone` is the item that is delivered alone to it, or
-- will be, or ''; `redelivers`: it gets held items one at a time
local function session_of(number, text)
  local f = cmsgpack.unpack(text)
  return {
    number = number, view = f[1], window = f[2], out = f[3], served = f[4], stopped = f[5], alone = f[6],
    user = f[7], server = f[8], index = f[9], process = f[10] or '', redelivers = f[11],
  }
end

-- Answers the connections of the group, by number
function consumers.sessions(G)
  if not G.sess then
    G.sess = {}
    local found = call('HGETALL', G.g .. 'sess')
    for place = 1, #found, 2 do
      local number = tonumber(found[place])
      G.sess[number] = session_of(number, found[place + 1])
    end
  end
  return G.sess
end

-- Answers the connection and its group, or nil
function consumers.session(S, number)
  local name = call('HGET', S.p .. 'who', number)
  if not name then
    return nil
  end
  local G = groups.get(S, name)
  return consumers.sessions(G)[number], G
end

-- Answers the same, for reading only: the cost does not grow with the group
function consumers.read_session(S, number)
  local name = call('HGET', S.p .. 'who', number)
  if not name then
    return nil
  end
  local G = groups.get(S, name)
  return session_of(number, call('HGET', G.g .. 'sess', number)), G
end

function consumers.free(s)
  return (s.stopped or s.alone ~= '' or s.redelivers) and 0 or s.window - s.out
end

-- Answers whether the connection waits to be empty for an item that is delivered alone
function consumers.is_reserved(G, s)
  return s.alone ~= '' and groups.owner(G, s.alone) ~= s.number
end

-- Ends the delivery of items, some hundred at most: they are no longer pending in the group
function consumers.end_delivery(G, ids)
  local by_session, pending = {}, {}
  for place, number in ipairs(call('HMGET', G.g .. 'pend', unpack(ids))) do
    if number then
      local list = by_session[number] or {}
      by_session[number] = list
      list[#list + 1] = ids[place]
      pending[#pending + 1] = ids[place]
    end
  end
  if #pending == 0 then
    return
  end
  call('HDEL', G.g .. 'pend', unpack(pending))
  for number, list in pairs(by_session) do
    local s = consumers.sessions(G)[tonumber(number)]
    call('SREM', G.S.p .. 'out:' .. number, unpack(list))
    call('ZREM', G.S.p .. 'box:' .. number, unpack(list))
    s.out, s.changed = s.out - #list, true
    for _, id in ipairs(list) do
      if s.alone == id then
        s.alone = ''
      end
    end
  end
end

-- Forgets the entries, some hundred at most, in the group. The entries have to be present
function consumers.forget_items(G, ids)
  local S, g = G.S, G.g
  consumers.end_delivery(G, ids)
  local ranks, timers, exhausted_fields, answers = {}, {}, {}, {}
  for place, id in ipairs(ids) do
    ranks[place] = entries.rank(S, id)
    timers[place] = groups.hold_timer(G, id)
    exhausted_fields[place] = G.name .. '\0' .. id
    answers[place] = id .. '\0' .. G.name
  end
  if call('HDEL', g .. 'held', unpack(ids)) > 0 then
    call('ZREM', S.p .. 'timers', unpack(timers))
    call('HDEL', S.p .. 'doom', unpack(exhausted_fields))
  end
  if call('ZREM', g .. 'done', unpack(ranks)) > 0 and call('SREM', g .. 'gone', unpack(ids)) > 0 then
    call('HDEL', S.p .. 'answers', unpack(answers))
  end
  call('ZREM', g .. 'ret', unpack(ranks))
  call('ZREM', g .. 'alone', unpack(ranks))
  groups.unmark(G, ids)
  call('HDEL', g .. 'deliv', unpack(ids))
  if call('HDEL', g .. 'fail', unpack(ids)) > 0 then
    call('HDEL', g .. 'why', unpack(ids))
  end
end

-- -- views ----------------------------------------------------------------------------------------------------------

local function view_of(number, text)
  local f = cmsgpack.unpack(text)
  return {number = number, after = f[1], filter = f[2], wanted = tags_in(f[2], 1), ahead = {},
    cursors = {}, moved = {}}
end

function consumers.views(G)
  if not G.views then
    G.views = {}
    local found = call('HGETALL', G.g .. 'views')
    for place = 1, #found, 2 do
      table.insert(G.views, view_of(tonumber(found[place]), found[place + 1]))
    end
    table.sort(G.views, function(one, other) return one.number < other.number end)
  end
  return G.views
end

function consumers.view(G, after, filter)
  for _, V in ipairs(consumers.views(G)) do
    if V.after == after and V.filter == filter then
      return V
    end
  end
  G.views_made, G.changed = G.views_made + 1, true
  local text = cmsgpack.pack({after, filter})
  call('HSET', G.g .. 'views', G.views_made, text)
  local V = view_of(G.views_made, text)
  table.insert(G.views, V)
  return V
end

-- Answers the scan position of the view: in a priority, or among returned items ('r')
function consumers.cursor(G, V, level)
  local cursor = V.cursors[level]
  if not cursor then
    cursor = call('HGET', G.g .. 'cur:' .. V.number, level) or ''
    V.cursors[level] = cursor
  end
  return cursor
end

function consumers.move(V, level, cursor)
  V.cursors[level], V.moved[level] = cursor, true
end

-- Makes the item ready for the group again, at its rank, unless it is pending, held, committed or claimed
function consumers.make_ready(G, id)
  if not groups.is_ready(G, id) then
    return
  end
  local rank = entries.rank(G.S, id)
  if groups.goes_alone(G, id) then
    call('ZADD', G.g .. 'alone', 0, rank)
    return
  end
  local failed_by = groups.failed_by(G, id)
  if failed_by then
    call('SADD', G.g .. 'elsers', failed_by)
    call('ZADD', G.g .. 'els:' .. failed_by, 0, rank)
    return
  end
  call('ZADD', G.g .. 'ret', 0, rank)
  for _, V in ipairs(consumers.views(G)) do
    if rank <= consumers.cursor(G, V, 'r') then
      consumers.move(V, 'r', string.sub(rank, 1, -2))
    end
  end
end

-- Records that the held item goes to this connection, which gets such items one at a time
function consumers.redeliver_to(G, s, id)
  call('ZADD', G.S.p .. 'kept:' .. s.number, 0, entries.rank(G.S, id))
  s.redelivers, s.changed = true, true
end

-- Removes the view if no connection has it any more. Answers its filter if the view was the last one with it, else nil
function consumers.leave_view(G, number)
  for _, s in pairs(consumers.sessions(G)) do
    if s.view == number then
      return nil
    end
  end
  local filter
  for place, V in ipairs(consumers.views(G)) do
    if V.number == number then
      table.remove(G.views, place)
      call('HDEL', G.g .. 'views', number)
      call('DEL', G.g .. 'cur:' .. number)
      filter = V.filter
      break
    end
  end
  for _, V in ipairs(consumers.views(G)) do
    if V.filter == filter then
      return nil
    end
  end
  return filter
end

-- -- consumers ------------------------------------------------------------------------------------------------------

function consumers.get(G, user)
  local text = call('HGET', G.g .. 'mem', user)
  if not text then
    return nil
  end
  local f = cmsgpack.unpack(text)
  return {user = user, session = f[1], window = f[2], auto = f[3], filter = f[4], index = f[5], active = f[6],
    left_pending = f[7], place = f[8]}
end

function consumers.store(G, m)
  call('HSET', G.g .. 'mem', m.user, cmsgpack.pack(
    {m.session, m.window, m.auto, m.filter, m.index, m.active, m.left_pending, m.place}))
  local timer = 'm\0' .. G.name .. '\0' .. m.user
  if m.session == 0 then
    call('ZADD', G.S.p .. 'timers', m.active + CONF.forget, timer)
  else
    call('ZREM', G.S.p .. 'timers', timer)
  end
end

function consumers.drop(G, user)
  call('HDEL', G.g .. 'mem', user)
  call('ZREM', G.S.p .. 'timers', 'm\0' .. G.name .. '\0' .. user)
end

-- Answers all consumers of the group, in the order in which they came
function consumers.all(G)
  local list = {}
  for _, user in ipairs(call('HKEYS', G.g .. 'mem')) do
    list[#list + 1] = consumers.get(G, user)
  end
  table.sort(list, function(one, other) return one.place < other.place end)
  return list
end

-- Removes the consumers that left first, so that at most MOST_LEFT of these are listed
function consumers.forget_left(G)
  if call('HLEN', G.g .. 'mem') - G.connected <= MOST_LEFT then
    return
  end
  local left = {}
  for _, m in ipairs(consumers.all(G)) do
    if m.session == 0 then
      left[#left + 1] = m
    end
  end
  table.sort(left, function(one, other) return one.active < other.active end)
  for place = 1, #left - MOST_LEFT do
    consumers.drop(G, left[place].user)
  end
end

-- -- what changed ---------------------------------------------------------------------------------------------------

local function save_sessions(G)
  for number, s in pairs(G.sess or {}) do
    if s.changed then
      call('HSET', G.g .. 'sess', number, cmsgpack.pack(
        {s.view, s.window, s.out, s.served, s.stopped, s.alone, s.user, s.server, s.index, s.process, s.redelivers}))
    end
  end
  for _, V in ipairs(G.views or {}) do
    for level in pairs(V.moved) do
      call('HSET', G.g .. 'cur:' .. V.number, level, V.cursors[level])
    end
  end
end

function consumers.save(S)
  for _, G in pairs(S.groups) do
    if G then
      if G.changed then
        call('HSET', G.g .. 'meta', 'connected', G.connected, 'highest', G.highest, 'views', G.views_made,
          'filters', groups.filters_text(G), 'marks', G.marks and '1' or '0')
      end
      save_sessions(G)
    end
  end
end
