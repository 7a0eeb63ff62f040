-- Scans of read, take and count: the visible entries that match, from an index on, within the budget of one call.

local scans = {}

-- Answers the first index that a read from `start` examines; '-1' is the last item
function scans.start(S, start)
  if start == '-1' then
    return call('ZREVRANGE', S.p .. 'all', 0, 0)[1] or id_of(1)
  end
  return id_of(tonumber(start))
end

-- Calls `found` with each index that has all of `wanted`, until it returns true. Answers the index to go on from, '' at
-- the end
function scans.each(S, start, wanted, found)
  local rid, everything = wanted['requestId'], next(wanted) == nil
  while true do
    local ids = rid and entries.with_request(S, rid, start, 100) or entries.from(S, start, 100)
    for _, id in ipairs(ids) do
      if not spend() then
        return id
      end
      local here = not rid or entries.visible(S, id)
      if here and (everything or carries(entries.tags(S, id), wanted)) and found(id) then
        return ''
      end
    end
    if #ids < 100 then
      return ''
    end
    start = id_of(tonumber(ids[100]) + 1)
  end
end

function scans.frame(S, id)
  return {id, string.sub(entries.head(S, id), 9), call('HGET', S.p .. 'data', id)}
end
