-- Which connection of a group gets which item next.
--
-- The ready item of the highest class and lowest index goes to the consumer with most free slots, of these to the one
-- served least recently, of these to the lowest number. An item that failed before goes to a connection that has
-- nothing else. Places are compared as text.

local handout = {}

local CHUNK = 32

local function is_wanted(V, S, id)
  return id > V.after and (next(V.wanted) == nil or carries(entries.tags(S, id), V.wanted))
end

local function is_ready_among_others(G, id)
  return groups.is_ready(G, id) and not groups.goes_alone(G, id)
end

-- The first place among what came back that the view wants; all before it are known not to be for it
local function peek_returned(G, V)
  while true do
    local cursor = members.cursor(G, V, 'r')
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
        members.move(V, 'r', rank)
      end
    end
    if #places < CHUNK then
      return nil
    end
  end
end

-- The first index of the class that the view wants; all before it are known not to be for it
local function peek_lane(G, V, priority)
  local lane = V.ahead[priority]
  if not lane then
    local cursor = members.cursor(G, V, priority)
    lane = {at = 1, ids = {}, last = false, cursor = cursor > V.after and cursor or V.after}
    V.ahead[priority] = lane
  end
  while true do
    while lane.at <= #lane.ids do
      local id = lane.ids[lane.at]
      if not spend() then
        return nil
      end
      if is_ready_among_others(G, id) and is_wanted(V, G.S, id) then
        return id
      end
      lane.at, lane.cursor = lane.at + 1, id
      members.move(V, priority, id)
    end
    if lane.last then
      return nil
    end
    lane.ids = call('ZRANGEBYLEX', entries.lane(G.S, priority), '(' .. lane.cursor, '+', 'LIMIT', 0, CHUNK)
    lane.at, lane.last = 1, #lane.ids < CHUNK
  end
end

-- The place that the view's consumers get next
local function peek(G, V)
  local returned = peek_returned(G, V)
  for _, priority in ipairs(entries.classes(G.S)) do
    if work.more then
      return nil
    end
    if returned and priority_in(returned) > priority then
      return returned
    end
    local id = peek_lane(G, V, priority)
    if id then
      local fresh = rank_of(priority, id)
      return (returned and returned < fresh) and returned or fresh
    end
  end
  return not work.more and returned or nil
end

local function hand_out(G, s, id)
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

-- -- items that go alone --------------------------------------------------------------------------------------------

local function reserved(G)
  local list = {}
  for _, s in pairs(members.sessions(G)) do
    if members.is_reserved(G, s) then
      list[#list + 1] = s
    end
  end
  table.sort(list, function(one, other) return one.number < other.number end)
  return list
end

-- The connection waits for no item; what it waited for, if it is still ready, is for whoever comes
function handout.unreserve(G, s)
  local id = s.alone
  s.alone, s.changed = '', true
  members.put_back(G, id)
end

-- A connection that was waiting to be empty, and is, has its item; if that is gone, it waits no longer
local function serve_reserved(G)
  for _, s in ipairs(reserved(G)) do
    if s.stopped or not groups.is_ready(G, s.alone) then
      handout.unreserve(G, s)
    elseif s.out == 0 then
      hand_out(G, s, s.alone)
    end
  end
end

-- The connections that want the item, and neither have nor wait for one that goes alone
local function takers_of(G, id)
  local list = {}
  for _, V in ipairs(members.views(G)) do
    if is_wanted(V, G.S, id) then
      local here = {}
      for _, s in pairs(members.sessions(G)) do
        if s.view == V.number and not s.stopped and s.alone == '' then
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

-- Nothing else is to be handed out: an item that waits for one connection to be empty, while another that could take
-- it is, waits no longer. Whether there was one.
local function release_reserved(G)
  for _, s in ipairs(reserved(G)) do
    for _, taker in ipairs(takers_of(G, s.alone)) do
      if taker.out == 0 then
        handout.unreserve(G, s)
        return true
      end
    end
  end
  return false
end

-- An item that goes alone, if it is before `other`, has a consumer: whichever has least pending gets nothing more until
-- it is empty, then it gets the item. The others go on with later items. Whether there was one.
local function reserve(G, other)
  for _, rank in ipairs(call('ZRANGEBYLEX', G.g .. 'alone', '-', other and '(' .. other or '+', 'LIMIT', 0, CHUNK)) do
    local id = id_in(rank)
    if not groups.is_ready(G, id) then
      call('ZREM', G.g .. 'alone', rank)
    else
      local chosen
      for _, s in ipairs(takers_of(G, id)) do
        if not chosen or s.out < chosen.out or (s.out == chosen.out and s.served < chosen.served) then
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

-- The first place that somebody with a free slot wants, and the views that do
local function best_place(G)
  local open = {}
  for _, s in pairs(members.sessions(G)) do
    if members.free(s) > 0 then
      open[s.view] = true
    end
  end
  local best, takers = nil, {}
  for _, V in ipairs(members.views(G)) do
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
  local free, others = members.free(one), members.free(other)
  if free ~= others then
    return free > others
  end
  if one.served ~= other.served then
    return one.served < other.served
  end
  return one.number < other.number
end

local function dispatch(G)
  serve_reserved(G)
  while not work.more do
    local best, takers = best_place(G)
    if work.more then
      return
    end
    if not reserve(G, best) then
      if best then
        local chosen
        for _, s in pairs(members.sessions(G)) do
          if takers[s.view] and members.free(s) > 0 and (not chosen or is_before(s, chosen)) then
            chosen = s
          end
        end
        hand_out(G, chosen, id_in(best))
      elseif not release_reserved(G) then
        return
      end
    end
  end
end

-- The ready item of the highest class and lowest index goes to the consumer with most free slots, until none fits. One
-- group's long search does not hold up another. Whether a view's next item is still for it takes two looks, which leave
-- nothing done for the next call: they come on top, so that each call gets on however many views there are.
function handout.dispatch(G)
  if G.connected == 0 or not entries.any(G.S) then
    return
  end
  local before = work.more
  work.left, work.more = CONF.budget + 2 * #members.views(G), false
  dispatch(G)
  work.more = work.more or before
end

function handout.dispatch_all(S)
  for _, G in ipairs(groups.all(S)) do
    handout.dispatch(G)
  end
end

-- What is held for this very user is its again, in order; what it no longer wants is ready for all
function handout.give_back(G, s, V)
  local mine = {}
  local held = call('HGETALL', G.g .. 'held')
  for place = 1, #held, 2 do
    local id = held[place]
    if held[place + 1] == s.user and s.user ~= '' then
      if entries.visible(G.S, id) and is_wanted(V, G.S, id) and not groups.goes_alone(G, id) then
        mine[#mine + 1] = entries.rank(G.S, id)
      else
        groups.unhold(G, id)
        members.put_back(G, id)
      end
    end
  end
  table.sort(mine)
  local at = 1
  while at <= #mine and members.free(s) > 0 do
    local other = peek(G, V)
    if other and other < mine[at] then
      hand_out(G, s, id_in(other))
    else
      groups.unhold(G, id_in(mine[at]))
      hand_out(G, s, id_in(mine[at]))
      at = at + 1
    end
  end
end

-- The connection gets nothing more: what it has not fetched yet is ready for others
function handout.stop(G, s)
  s.stopped, s.changed = true, true
  for _, id in ipairs(call('ZRANGE', G.S.p .. 'box:' .. s.number, 0, -1)) do
    members.take_away(G, {id})
    members.put_back(G, id)
  end
end
