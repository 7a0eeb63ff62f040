-- The retention of items: which groups still need an item. An item is removed once a group has committed it and no
-- group retains it.
--
-- PREFIX meta  field unheld: the place where the search for items that can be removed goes on; absent: no search

local retention = {}

-- Answers who retains the entry, among all groups except `but`: NOBODY, ABSENT (only filters of absent consumers) or
-- CONNECTED
function retention.holder(S, id, but)
  local found, filtered = filters.NOBODY, {}
  for _, G in ipairs(groups.all(S)) do
    if G ~= but and next(G.filters) and not groups.has_committed(G, id) then
      local everything = G.filters['']
      if everything == -1 then
        return filters.CONNECTED
      elseif everything then
        found = filters.ABSENT
      end
      filtered[#filtered + 1] = G
    end
  end
  for _, G in ipairs(filtered) do
    if next(G.filters, next(G.filters)) or not G.filters[''] then
      found = math.max(found, filters.holder(G, entries.tags(S, id)))
    end
  end
  return found
end

-- Calls `with` for each entry that a group has committed, for some twice, until the budget is spent or `with` returns
-- true. Answers where to go on, which is the next call's `from` (at first ''), or nil at the end.
function retention.each_committed(S, from, with)
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

-- Removes entries for all groups
function retention.remove(S, ids)
  in_chunks(ids, function(part)
    for _, G in ipairs(groups.all(S)) do
      consumers.forget_items(G, part)
    end
    entries.remove(S, part)
    S.has_changed = true
  end)
end

-- Removes entries that their groups have finished. If no group committed an entry, stores the answer in the sink: that of
-- the group `last`, if it is given, else of the group that gave the item up last.
function retention.retire(S, ids, last)
  for _, id in ipairs(ids) do
    local answer, answer_of
    for _, G in ipairs(groups.all(S)) do
      if groups.has_committed(G, id) then
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
  retention.remove(S, ids)
end

-- Removes the entries that a group has committed and no group retains, from the place `from` on. If the budget of this
-- call is spent, the next `tick` goes on.
function retention.remove_free(S, from)
  local found, seen = {}, {}
  local rest = retention.each_committed(S, from, function(id)
    if not seen[id] and retention.holder(S, id) == filters.NOBODY then
      found[#found + 1] = id
    end
    seen[id] = true
  end)
  table.sort(found)
  retention.retire(S, found)
  if rest then
    call('HSET', S.p .. 'meta', 'unheld', rest)
  else
    call('HDEL', S.p .. 'meta', 'unheld')
  end
end

-- Records that a consumer with this filter is connected. If the consumer had another filter `before` that no other consumer
-- has, that one ends: the consumer will not return for its items.
function retention.take_filter(G, filter, before)
  filters.connect(G, filter)
  if not before or before == filter or (G.filters[before] or -1) < 0 then
    return
  end
  for _, m in ipairs(consumers.all(G)) do
    if m.filter == before then
      return
    end
  end
  filters.drop(G, before)
  retention.remove_free(G.S, '')
end
