-- The tag filters of a consumer group: a group retains the items that match one of them. A filter is written as packed
-- tags ('' matches every item). `G.filters` maps it to the time (ms) at which its last consumer left, -1 while one is
-- connected. `meta` of the group holds them (see groups.lua), PREFIX timers the end of their retention period.

local filters = {}

local MOST_ABSENT = 64  -- most separate filters whose consumers left; above that, one that matches everything replaces them

-- Who retains an item: nobody, only filters of absent consumers, or a connected consumer
filters.NOBODY, filters.ABSENT, filters.CONNECTED = 0, 1, 2

local function lapse_timer(G, filter)
  return 'l\0' .. G.name .. '\0' .. filter
end

-- Removes the filter and its timer
function filters.drop(G, filter)
  if G.filters[filter] ~= -1 then
    call('ZREM', G.S.p .. 'timers', lapse_timer(G, filter))
  end
  G.filters[filter], G.changed, G.packed = nil, true, nil
end

-- Records that a consumer with this filter is connected
function filters.connect(G, filter)
  if G.filters[filter] ~= -1 then
    filters.drop(G, filter)
    G.filters[filter] = -1
  end
end

local function set_absent(G, filter)
  G.filters[filter], G.changed, G.packed = NOW, true, nil
  call('ZADD', G.S.p .. 'timers', NOW + CONF.retention, lapse_timer(G, filter))
end

-- Removes the filters whose last consumer left; answers whether there were any
function filters.drop_absent(G)
  local absent = {}
  for filter, left in pairs(G.filters) do
    if left >= 0 then
      absent[#absent + 1] = filter
    end
  end
  for _, filter in ipairs(absent) do
    filters.drop(G, filter)
  end
  return #absent > 0
end

-- Records that the last consumer with this filter left. If there are too many such filters, one that matches everything
-- replaces them.
function filters.leave(G, filter)
  set_absent(G, filter)
  local count = 0
  for _, left in pairs(G.filters) do
    count = count + (left >= 0 and 1 or 0)
  end
  if count > MOST_ABSENT then
    filters.drop_absent(G)
    if not G.filters[''] then
      set_absent(G, '')
    end
  end
end

-- Removes a filter whose timer is due, unless a consumer used it meanwhile; answers whether it was removed
function filters.lapse(G, filter)
  local left = G.filters[filter]
  if not left or left < 0 then
    return false
  end
  if left + CONF.retention > NOW then
    call('ZADD', G.S.p .. 'timers', left + CONF.retention, lapse_timer(G, filter))
    return false
  end
  filters.drop(G, filter)
  return true
end

-- Answers who in the group retains an item with these tags: NOBODY, ABSENT or CONNECTED
function filters.holder(G, tags)
  local found = filters.NOBODY
  for filter, left in pairs(G.filters) do
    G.wanted[filter] = G.wanted[filter] or tags_in(filter, 1)
    if carries(tags, G.wanted[filter]) then
      if left < 0 then
        return filters.CONNECTED
      end
      found = filters.ABSENT
    end
  end
  return found
end
