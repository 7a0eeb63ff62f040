-- The connections of a group, the views that they share, and the consumers as attributes list them.
--
-- A view is one start and one tag filter, and how far it has looked in each class.

local members = {}

local MOST_LEFT = 1000  -- at most so many consumers that left are listed

-- What the hand-out needs of a connection; `out` is how many items are pending there, `alone` is one that it has, or
-- waits for, to have nothing beside it, or ''
local function session_of(number, text)
  local f = cmsgpack.unpack(text)
  return {
    number = number, view = f[1], window = f[2], out = f[3], served = f[4], stopped = f[5], alone = f[6],
    user = f[7], server = f[8], index = f[9], process = f[10] or '', keeps = f[11],
  }
end

-- Connection -> what the hand-out needs of it
function members.sessions(G)
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

-- The connection and its group, or nil
function members.session(S, number)
  local name = call('HGET', S.p .. 'who', number)
  if not name then
    return nil
  end
  local G = groups.get(S, name)
  return members.sessions(G)[number], G
end

-- The same, to be read only: what it costs does not grow with the group
function members.look(S, number)
  local name = call('HGET', S.p .. 'who', number)
  if not name then
    return nil
  end
  local G = groups.get(S, name)
  return session_of(number, call('HGET', G.g .. 'sess', number)), G
end

function members.free(s)
  return (s.stopped or s.alone ~= '' or s.keeps) and 0 or s.window - s.out
end

-- Whether the connection waits to be empty for an item that goes alone
function members.is_reserved(G, s)
  return s.alone ~= '' and groups.owner(G, s.alone) ~= s.number
end

-- The items, some hundred, are pending in the group no longer
function members.take_away(G, ids)
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
    local s = members.sessions(G)[tonumber(number)]
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

-- The entries, some hundred, go: the group remembers nothing of them; to be called while they are there
function members.forget_items(G, ids)
  local S, g = G.S, G.g
  members.take_away(G, ids)
  local ranks, timers, dooms, answers = {}, {}, {}, {}
  for place, id in ipairs(ids) do
    ranks[place] = entries.rank(S, id)
    timers[place] = groups.hold_timer(G, id)
    dooms[place] = G.name .. '\0' .. id
    answers[place] = id .. '\0' .. G.name
  end
  if call('HDEL', g .. 'held', unpack(ids)) > 0 then
    call('ZREM', S.p .. 'timers', unpack(timers))
    call('HDEL', S.p .. 'doom', unpack(dooms))
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

function members.views(G)
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

function members.view(G, after, filter)
  for _, V in ipairs(members.views(G)) do
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

-- How far the view has looked: in a class, or among what came back ('r')
function members.cursor(G, V, lane)
  local cursor = V.cursors[lane]
  if not cursor then
    cursor = call('HGET', G.g .. 'cur:' .. V.number, lane) or ''
    V.cursors[lane] = cursor
  end
  return cursor
end

function members.move(V, lane, cursor)
  V.cursors[lane], V.moved[lane] = cursor, true
end

-- The item is ready for the group again, in its class and place, if nothing is in the way
function members.put_back(G, id)
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
  for _, V in ipairs(members.views(G)) do
    if rank <= members.cursor(G, V, 'r') then
      members.move(V, 'r', string.sub(rank, 1, -2))
    end
  end
end

-- Records that the held item goes to this connection, which gets such items one at a time
function members.keep_for(G, s, id)
  call('ZADD', G.S.p .. 'kept:' .. s.number, 0, entries.rank(G.S, id))
  s.keeps, s.changed = true, true
end

-- Removes the view if no connection has it any more; then answers its filter, if no other view has that
function members.leave_view(G, number)
  for _, s in pairs(members.sessions(G)) do
    if s.view == number then
      return nil
    end
  end
  local filter
  for place, V in ipairs(members.views(G)) do
    if V.number == number then
      table.remove(G.views, place)
      call('HDEL', G.g .. 'views', number)
      call('DEL', G.g .. 'cur:' .. number)
      filter = V.filter
      break
    end
  end
  for _, V in ipairs(members.views(G)) do
    if V.filter == filter then
      return nil
    end
  end
  return filter
end

-- -- consumers ------------------------------------------------------------------------------------------------------

function members.get(G, user)
  local text = call('HGET', G.g .. 'mem', user)
  if not text then
    return nil
  end
  local f = cmsgpack.unpack(text)
  return {user = user, session = f[1], window = f[2], auto = f[3], filter = f[4], index = f[5], active = f[6],
    left_pending = f[7], place = f[8]}
end

function members.keep(G, m)
  call('HSET', G.g .. 'mem', m.user, cmsgpack.pack(
    {m.session, m.window, m.auto, m.filter, m.index, m.active, m.left_pending, m.place}))
  local timer = 'm\0' .. G.name .. '\0' .. m.user
  if m.session == 0 then
    call('ZADD', G.S.p .. 'timers', m.active + CONF.forget, timer)
  else
    call('ZREM', G.S.p .. 'timers', timer)
  end
end

function members.drop(G, user)
  call('HDEL', G.g .. 'mem', user)
  call('ZREM', G.S.p .. 'timers', 'm\0' .. G.name .. '\0' .. user)
end

-- All of them, in the order in which they came
function members.all(G)
  local list = {}
  for _, user in ipairs(call('HKEYS', G.g .. 'mem')) do
    list[#list + 1] = members.get(G, user)
  end
  table.sort(list, function(one, other) return one.place < other.place end)
  return list
end

-- Of the consumers that left only the latest are listed
function members.forget_left(G)
  if call('HLEN', G.g .. 'mem') - G.connected <= MOST_LEFT then
    return
  end
  local left = {}
  for _, m in ipairs(members.all(G)) do
    if m.session == 0 then
      left[#left + 1] = m
    end
  end
  table.sort(left, function(one, other) return one.active < other.active end)
  for place = 1, #left - MOST_LEFT do
    members.drop(G, left[place].user)
  end
end

-- -- what changed ---------------------------------------------------------------------------------------------------

local function save_sessions(G)
  for number, s in pairs(G.sess or {}) do
    if s.changed then
      call('HSET', G.g .. 'sess', number, cmsgpack.pack(
        {s.view, s.window, s.out, s.served, s.stopped, s.alone, s.user, s.server, s.index, s.process, s.keeps}))
    end
  end
  for _, V in ipairs(G.views or {}) do
    for lane in pairs(V.moved) do
      call('HSET', G.g .. 'cur:' .. V.number, lane, V.cursors[lane])
    end
  end
end

function members.save(S)
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
