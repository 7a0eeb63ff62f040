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
  return groups.is_ready(G, id) and not groups.goes_alone(G, id) and not groups.failed_by(G, id)
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

-- The connections whose filter matches the item, except stopped ones
local function wanting(G, id)
  local list = {}
  for _, V in ipairs(members.views(G)) do
    if is_wanted(V, G.S, id) then
      local here = {}
      for _, s in pairs(members.sessions(G)) do
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

-- The connections of other users than `user`; if there are none, all
local function others_than(user, list)
  local others = {}
  for _, s in ipairs(list) do
    if s.user ~= user then
      others[#others + 1] = s
    end
  end
  return #others > 0 and others or list
end

-- The connections that can get the item alone: their filter matches, and they neither have nor wait for such an item. The
-- user that failed it last is left out unless it is the only one
local function takers_of(G, id)
  local list = {}
  for _, s in ipairs(others_than(groups.failed_by(G, id), wanting(G, id))) do
    if s.alone == '' and not s.keeps then
      list[#list + 1] = s
    end
  end
  return list
end

-- Gives consumers the items kept for them, one at a time: each once the consumer has nothing else pending
local function serve_kept(G)
  local list = {}
  for _, s in pairs(members.sessions(G)) do
    if s.keeps then
      list[#list + 1] = s
    end
  end
  table.sort(list, function(one, other) return one.number < other.number end)
  for _, s in ipairs(list) do
    local kept = G.S.p .. 'kept:' .. s.number
    local rank, id
    repeat
      rank = call('ZRANGE', kept, 0, 0)[1]
      id = rank and id_in(rank)
      local waits = rank and call('HGET', G.g .. 'held', id) == s.user and entries.visible(G.S, id)
      if rank and not waits then
        call('ZREM', kept, rank)
      end
    until waits or not rank
    if rank and not s.stopped and s.out == 0 then
      call('ZREM', kept, rank)
      groups.unhold(G, id)
      s.alone = id
      hand_out(G, s, id)
    end
    if call('EXISTS', kept) == 0 then
      s.keeps, s.changed = false, true
    end
  end
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

local function is_emptier(one, other)
  if one.out ~= other.out then
    return one.out < other.out
  end
  if one.served ~= other.served then
    return one.served < other.served
  end
  return one.number < other.number
end

-- An item that goes alone, if it is before `other`, has a consumer: whichever has least pending gets nothing more until
-- it is empty, then it gets the item. The others go on with later items. Whether there was one.
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

-- Hands out a failed item that comes before `other` to a consumer other than the one that failed it; answers whether there
-- was one. The item waits while such consumers have no free slot; without such a consumer it becomes an ordinary item.
local function pass_on(G, other)
  local found, most = {}, #members.views(G) == 1 and 0 or CHUNK - 1
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
        if members.free(s) > 0 and (not chosen or is_before(s, chosen)) then
          chosen = s
        end
      end
    end
    if chosen or not has_others then
      call('ZREM', G.g .. 'els:' .. user, rank)
      if chosen then
        hand_out(G, chosen, id_in(rank))
      else
        call('HDEL', G.g .. 'by', id_in(rank))
        members.put_back(G, id_in(rank))
      end
      return true
    end
  end
  return false
end

local function dispatch(G)
  serve_reserved(G)
  serve_kept(G)
  while not work.more do
    local best, takers = best_place(G)
    if work.more then
      return
    end
    if not reserve(G, best) and not pass_on(G, best) then
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

-- Gives the items that are held for this user to its new connection; those that its filter excludes are ready for all. A
-- process that reconnects gets all of them at once, as before. Another process gets them one at a time.
function handout.give_back(G, s, V)
  local had = {}
  local held = call('HGETALL', G.g .. 'held')
  for place = 1, #held, 2 do
    local id = held[place]
    local user, process = groups.kept_for(held[place + 1])
    if user == s.user and user ~= '' then
      if not (entries.visible(G.S, id) and is_wanted(V, G.S, id)) then
        groups.unhold(G, id)
        members.put_back(G, id)
      elseif process ~= '' then
        had[#had + 1] = entries.rank(G.S, id)
      else
        members.keep_for(G, s, id)
      end
    end
  end
  table.sort(had)
  for _, rank in ipairs(had) do
    local id = id_in(rank)
    if s.out < s.window then
      groups.unhold(G, id)
      hand_out(G, s, id)
      if groups.goes_alone(G, id) then
        s.alone = id
      end
    else  -- the window is smaller than before: this does not count as a loss
      call('HSET', G.g .. 'held', id, s.user)
      members.keep_for(G, s, id)
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
