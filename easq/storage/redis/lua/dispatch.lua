-- Choose the connection of a group that gets the next item.
--
-- The ready item of the highest priority and lowest index goes to the consumer with most free slots. Among equals, the
-- one served least recently gets it, then the one with the lowest number. An item that failed once goes to another
-- consumer, if there is one. After two failures, or one lost connection, an item is delivered alone: to a connection
-- that has no other item.

local dispatch = {}

local CHUNK = 32

local function is_wanted(V, S, id)
  return id > V.after and (next(V.wanted) == nil or carries(entries.tags(S, id), V.wanted))
end

local function is_ready_among_others(G, id)
  return groups.is_ready(G, id) and not groups.goes_alone(G, id) and not groups.failed_by(G, id)
end

-- Answers the rank of the first returned item that the view wants; all before it are known not to be for it
local function peek_returned(G, V)
  while true do
    local cursor = consumers.cursor(G, V, 'r')
    local places = call('ZRANGEBYLEX', G.g .. 'ret', cursor == '' and '-' or '(' .. cursor, '+', 'LIMIT', 0, CHUNK)
    for _, rank in ipairs(places) do
      if not spend() then
        return nil
      end
      local id = id_in(rank)
      if not is_ready_among_others(G, id) then
        call('ZREM', G.g .. 'ret', rank)
      elseif is_wanted(V, G.S, id) then
        return rank
      else
        consumers.move(V, 'r', rank)
      end
    end
    if #places < CHUNK then
      return nil
    end
  end
end

-- Answers the first index of the priority that the view wants; all before it are known not to be for it
local function peek_level(G, V, priority)
  local level = V.ahead[priority]
  if not level then
    local cursor = consumers.cursor(G, V, priority)
    level = {at = 1, ids = {}, last = false, cursor = cursor > V.after and cursor or V.after}
    V.ahead[priority] = level
  end
  while true do
    while level.at <= #level.ids do
      local id = level.ids[level.at]
      if not spend() then
        return nil
      end
      if is_ready_among_others(G, id) and is_wanted(V, G.S, id) then
        return id
      end
      level.at, level.cursor = level.at + 1, id
      consumers.move(V, priority, id)
    end
    if level.last then
      return nil
    end
    level.ids = call('ZRANGEBYLEX', entries.level(G.S, priority), '(' .. level.cursor, '+', 'LIMIT', 0, CHUNK)
    level.at, level.last = 1, #level.ids < CHUNK
  end
end

-- Answers the rank of the view's next item
local function peek(G, V)
  local returned = peek_returned(G, V)
  for _, priority in ipairs(entries.classes(G.S)) do
    if work.more then
      return nil
    end
    if returned and priority_in(returned) > priority then
      return returned
    end
    local id = peek_level(G, V, priority)
    if id then
      local fresh = rank_of(priority, id)
      return (returned and returned < fresh) and returned or fresh
    end
  end
  return not work.more and returned or nil
end

local function assign(G, s, id)
  local S = G.S
  set(S, 'served', S.served + 1)
  s.served, s.out, s.index, s.changed = S.served, s.out + 1, tonumber(id), true
  call('SADD', S.p .. 'out:' .. s.number, id)
  call('ZADD', S.p .. 'box:' .. s.number, S.served, id)
  call('HSET', G.g .. 'pend', id, s.number)
  if s.index > G.highest then
    G.highest, G.changed = s.index, true
  end
  wake(S, s.number, s.server)
  spend()
end

-- -- items that are delivered alone -----------------------------------------------------------------------------------

local function reserved(G)
  local list = {}
  for _, s in pairs(consumers.sessions(G)) do
    if consumers.is_reserved(G, s) then
      list[#list + 1] = s
    end
  end
  table.sort(list, function(one, other) return one.number < other.number end)
  return list
end

-- Stops the connection's wait for an item. If the item is still ready, any connection may get it
function dispatch.unreserve(G, s)
  local id = s.alone
  s.alone, s.changed = '', true
  consumers.make_ready(G, id)
end

-- Assigns the reserved item to each waiting connection that is now empty. Ends the wait for items that no longer exist
local function serve_reserved(G)
  for _, s in ipairs(reserved(G)) do
    if s.stopped or not groups.is_ready(G, s.alone) then
      dispatch.unreserve(G, s)
    elseif s.out == 0 then
      assign(G, s, s.alone)
    end
  end
end

-- Answers the connections whose filter matches the item, except stopped ones
local function wanting(G, id)
  local list = {}
  for _, V in ipairs(consumers.views(G)) do
    if is_wanted(V, G.S, id) then
      local here = {}
      for _, s in pairs(consumers.sessions(G)) do
        if s.view == V.number and not s.stopped then
          here[#here + 1] = s
        end
      end
      table.sort(here, function(one, other) return one.number < other.number end)
      for _, s in ipairs(here) do
        list[#list + 1] = s
      end
    end
  end
  return list
end

-- Answers the connections of other users than `user`; if there are none, all
local function others_than(user, list)
  local others = {}
  for _, s in ipairs(list) do
    if s.user ~= user then
      others[#others + 1] = s
    end
  end
  return #others > 0 and others or list
end

-- Answers the connections that can get the item alone: their filter matches, and they neither have nor wait for such an
-- item. The user that failed it last is left out unless it is the only one
local function takers_of(G, id)
  local list = {}
  for _, s in ipairs(others_than(groups.failed_by(G, id), wanting(G, id))) do
    if s.alone == '' and not s.redelivers then
      list[#list + 1] = s
    end
  end
  return list
end

-- Gives consumers the items held for them, one at a time. A consumer gets the next one when it has nothing else pending
local function redeliver(G)
  local list = {}
  for _, s in pairs(consumers.sessions(G)) do
    if s.redelivers then
      list[#list + 1] = s
    end
  end
  table.sort(list, function(one, other) return one.number < other.number end)
  for _, s in ipairs(list) do
    local held = G.S.p .. 'kept:' .. s.number
    local rank, id
    repeat
      rank = call('ZRANGE', held, 0, 0)[1]
      id = rank and id_in(rank)
      local waits = rank and call('HGET', G.g .. 'held', id) == s.user and entries.visible(G.S, id)
      if rank and not waits then
        call('ZREM', held, rank)
      end
    until waits or not rank
    if rank and not s.stopped and s.out == 0 then
      call('ZREM', held, rank)
      groups.unhold(G, id)
      s.alone = id
      assign(G, s, id)
    end
    if call('EXISTS', held) == 0 then
      s.redelivers, s.changed = false, true
    end
  end
end

-- Ends the wait of one connection for an item that another, empty connection can take. Answers whether there was such a
-- wait. Called when no other item can be dispatched
local function release_reserved(G)
  for _, s in ipairs(reserved(G)) do
    for _, taker in ipairs(takers_of(G, s.alone)) do
      if taker.out == 0 then
        dispatch.unreserve(G, s)
        return true
      end
    end
  end
  return false
end

local function is_emptier(one, other)
  if one.out ~= other.out then
    return one.out < other.out
  end
  if one.served ~= other.served then
    return one.served < other.served
  end
  return one.number < other.number
end

-- Chooses a connection for an item that is delivered alone and comes before `other`: the one with least pending gets
-- nothing more until it is empty, then this item. The others go on with later items. Answers whether there was such an
-- item
local function reserve(G, other)
  local waited_for = {}
  for _, s in ipairs(reserved(G)) do
    waited_for[s.alone] = true
  end
  for _, rank in ipairs(call('ZRANGEBYLEX', G.g .. 'alone', '-', other and '(' .. other or '+', 'LIMIT', 0, CHUNK)) do
    local id = id_in(rank)
    if not groups.is_ready(G, id) or waited_for[id] then  -- it may have been put back while a connection waits for it
      call('ZREM', G.g .. 'alone', rank)
    else
      local chosen
      for _, s in ipairs(takers_of(G, id)) do
        if not chosen or is_emptier(s, chosen) then
          chosen = s
        end
      end
      if chosen then
        call('ZREM', G.g .. 'alone', rank)
        chosen.alone, chosen.changed = id, true
        serve_reserved(G)
        return true
      end
    end
  end
  return false
end

-- -- what is next ---------------------------------------------------------------------------------------------------

-- Answers the lowest rank that a connection with a free slot wants, and the views that want it
local function best_place(G)
  local open = {}
  for _, s in pairs(consumers.sessions(G)) do
    if consumers.free(s) > 0 then
      open[s.view] = true
    end
  end
  local best, takers = nil, {}
  for _, V in ipairs(consumers.views(G)) do
    if open[V.number] then
      local candidate = peek(G, V)
      if candidate and candidate == best then
        takers[V.number] = true
      elseif candidate and (not best or candidate < best) then
        best, takers = candidate, {[V.number] = true}
      end
    end
  end
  return best, takers
end

local function is_before(one, other)
  local free, others = consumers.free(one), consumers.free(other)
  if free ~= others then
    return free > others
  end
  if one.served ~= other.served then
    return one.served < other.served
  end
  return one.number < other.number
end

-- Dispatches a failed item that comes before `other` to a consumer other than the one that failed it; answers whether
-- there was one. The item waits while such consumers have no free slot; without such a consumer it becomes an ordinary
-- item
local function dispatch_elsewhere(G, other)
  local found, most = {}, #consumers.views(G) == 1 and 0 or CHUNK - 1
  for _, user in ipairs(G.marks and call('SMEMBERS', G.g .. 'elsers') or {}) do
    local els = G.g .. 'els:' .. user
    local ranks = call('ZRANGE', els, 0, most)
    for _, rank in ipairs(ranks) do
      local id = id_in(rank)
      if groups.is_ready(G, id) and not groups.goes_alone(G, id) and groups.failed_by(G, id) == user then
        found[#found + 1] = {rank, user}
      elseif spend() then
        call('ZREM', els, rank)
      end
    end
    if #ranks == 0 then
      call('SREM', G.g .. 'elsers', user)
    elseif #found == 0 or found[#found][2] ~= user then
      return not work.more  -- the items behind the removed ones are for the next call
    end
  end
  table.sort(found, function(one, another) return one[1] < another[1] end)
  for _, one in ipairs(found) do
    local rank, user = one[1], one[2]
    if other and rank > other then
      return false
    end
    local chosen, has_others = nil, false
    for _, s in ipairs(wanting(G, id_in(rank))) do
      if s.user ~= user then
        has_others = true
        if consumers.free(s) > 0 and (not chosen or is_before(s, chosen)) then
          chosen = s
        end
      end
    end
    if chosen or not has_others then
      call('ZREM', G.g .. 'els:' .. user, rank)
      if chosen then
        assign(G, chosen, id_in(rank))
      else
        call('HDEL', G.g .. 'by', id_in(rank))
        consumers.make_ready(G, id_in(rank))
      end
      return true
    end
  end
  return false
end

local function dispatch_group(G)
  serve_reserved(G)
  redeliver(G)
  while not work.more do
    local best, takers = best_place(G)
    if work.more then
      return
    end
    if not reserve(G, best) and not dispatch_elsewhere(G, best) then
      if best then
        local chosen
        for _, s in pairs(consumers.sessions(G)) do
          if takers[s.view] and consumers.free(s) > 0 and (not chosen or is_before(s, chosen)) then
            chosen = s
          end
        end
        assign(G, chosen, id_in(best))
      elseif not release_reserved(G) then
        return
      end
    end
  end
end

-- Dispatches ready items of the group until no consumer with a free slot wants one. The budget is for this group alone,
-- so that the long scan of one group does not delay another. To check whether a view's next item is still ready takes
-- two steps that leave nothing for the next call; they come on top, so that each call makes progress however many views
-- there are
function dispatch.group(G)
  if G.connected == 0 or not entries.any(G.S) then
    return
  end
  local before = work.more
  work.left, work.more = CONF.budget + 2 * #consumers.views(G), false
  dispatch_group(G)
  work.more = work.more or before
end

function dispatch.all(S)
  for _, G in ipairs(groups.all(S)) do
    dispatch.group(G)
  end
end

-- Gives the items that are held for a user to the user's new connection. Items that its filter excludes become ready
-- for all. A process that reconnects gets all of them at once. Another process gets them one at a time
function dispatch.redeliver_held(G, s, V)
  local had = {}
  local held = call('HGETALL', G.g .. 'held')
  for place = 1, #held, 2 do
    local id = held[place]
    local user, process = groups.held_for(held[place + 1])
    if user == s.user and user ~= '' then
      if not (entries.visible(G.S, id) and is_wanted(V, G.S, id)) then
        groups.unhold(G, id)
        consumers.make_ready(G, id)
      elseif process ~= '' then
        had[#had + 1] = entries.rank(G.S, id)
      else
        consumers.redeliver_to(G, s, id)
      end
    end
  end
  table.sort(had)
  for _, rank in ipairs(had) do
    local id = id_in(rank)
    if s.out < s.window then
      groups.unhold(G, id)
      assign(G, s, id)
      if groups.goes_alone(G, id) then
        s.alone = id
      end
    else  -- the window is smaller than before: this does not count as a loss
      call('HSET', G.g .. 'held', id, s.user)
      consumers.redeliver_to(G, s, id)
    end
  end
end

-- Stops the connection: it gets nothing more, and what it has not fetched yet is ready for others
function dispatch.stop(G, s)
  s.stopped, s.changed = true, true
  for _, id in ipairs(call('ZRANGE', G.S.p .. 'box:' .. s.number, 0, -1)) do
    consumers.end_delivery(G, {id})
    consumers.make_ready(G, id)
  end
end
