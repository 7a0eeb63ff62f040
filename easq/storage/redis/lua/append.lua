-- flags: ; after: context entries groups filters consumers retention failures dispatch stream
-- Stores an item under a new index and dispatches it; an idempotency key stores one item only.
--
-- ARGV[4] highest index that the caller knows  [5] priority  [6] tags  [7] data  [8] most items  [9] most bytes
-- [10] '1': evict the oldest items  [11] idempotency key, or ''  [12] SHA-256 of the data  [13] request id
--
-- PREFIX keys     hash: idempotency key -> index, request id, SHA-256 of the data, time (ms)
-- PREFIX keyring  list: the idempotency keys, oldest first
-- PREFIX meta     field loose: the place where the search for items that only filters of absent consumers retain goes on,
--                 and count and size of those found
--
-- Answers `ok` {index, request id, 1 for a repeated key}, `full` {items, bytes}, `reused` (the key stored other data),
-- `ended`, `behind` (Redis has less than the caller knows), or `again`: only a part of the room is made, call once
-- more.

local S = stream.begin()
if not S then
  return {'gone'}
end
if S.last < tonumber(ARGV[4]) then
  return stream.finish(S, 'behind')
end

local key = ARGV[11]
if key ~= '' then
  local known = call('HGET', S.p .. 'keys', key)
  if known then
    local f = cmsgpack.unpack(known)
    if f[3] ~= ARGV[12] then
      return stream.finish(S, 'reused')
    end
    stream.write_for_wait(S)
    return stream.finish(S, 'ok', {f[1], f[2], 1})
  end
end
if S.ended == 1 then
  return stream.finish(S, 'ended')
end

local size, max_items, max_bytes, evict = #ARGV[7], tonumber(ARGV[8]), tonumber(ARGV[9]), ARGV[10] == '1'

local function has_room()
  return entries.has_room(S, size, max_items, max_bytes)
end

local function fits(count, bytes)
  return count < max_items and bytes + size <= max_bytes
end

-- Answers whether removing the items that only filters of absent consumers retain makes enough room. One put examines a
-- part of the committed items, and later puts go on.
local function has_enough_releasable()
  local f = cmsgpack.unpack(call('HGET', S.p .. 'meta', 'loose') or cmsgpack.pack({'', 0, 0}))
  local count, bytes, seen = f[2], f[3], {}
  work.left, work.more = CONF.budget / 5, false
  local rest = retention.each_committed(S, f[1], function(id)
    if not seen[id] and retention.holder(S, id) ~= filters.CONNECTED then
      count, bytes = count + 1, bytes + entries.size(S, id)
    end
    seen[id] = true
    return fits(S.len - count, S.size - bytes)
  end)
  work.more = false
  if rest then
    call('HSET', S.p .. 'meta', 'loose', cmsgpack.pack({rest, count, bytes}))
  else
    call('HDEL', S.p .. 'meta', 'loose')
  end
  return fits(S.len - count, S.size - bytes)
end

local function would_have_room()
  if evict then
    local count, bytes = 0, 0
    for _, id in ipairs(call('HKEYS', S.p .. 'claims')) do
      count, bytes = count + 1, bytes + entries.size(S, id)
    end
    return fits(count, bytes)
  end
  for _, G in ipairs(groups.all(S)) do
    for _, left in pairs(G.filters) do
      if left >= 0 then
        return has_enough_releasable()
      end
    end
  end
  return false
end

local function make_room()
  for _, G in ipairs(groups.all(S)) do
    filters.drop_absent(G)
  end
  work.left, work.more = CONF.budget, false
  retention.remove_free(S, '')
  while evict and not has_room() do
    local oldest = entries.from(S, '', 1)[1]
    if not oldest or not spend() then
      return
    end
    retention.remove(S, {oldest})
  end
end

if not has_room() then
  local unheld = call('HGET', S.p .. 'meta', 'unheld')
  if unheld then
    -- an earlier call dropped the filters of absent consumers, and not all items that became free are removed yet
    work.left, work.more = CONF.budget, false
    retention.remove_free(S, unheld)
    if not has_room() and call('HEXISTS', S.p .. 'meta', 'unheld') == 1 then
      return stream.finish(S, 'again')
    end
  end
end
if not has_room() then
  if not would_have_room() then
    return stream.finish(S, 'full', {S.len, S.size})
  end
  make_room()
  if not has_room() then
    return stream.finish(S, 'again')
  end
end

local id = entries.store(S, tonumber(ARGV[5]), ARGV[6], ARGV[7])
if key ~= '' then
  local keys, ring = S.p .. 'keys', S.p .. 'keyring'
  call('HSET', keys, key, cmsgpack.pack({S.last, ARGV[13], ARGV[12], NOW}))
  local excess = call('RPUSH', ring, key) - CONF.remember_keys
  for _ = 1, math.min(excess, 100) do
    local oldest = call('LINDEX', ring, 0)
    if NOW - cmsgpack.unpack(call('HGET', keys, oldest))[4] < CONF.remember then
      break
    end
    call('LPOP', ring)
    call('HDEL', keys, oldest)
  end
end
work.left, work.more = CONF.budget, false
S.quiet = true
dispatch.all(S)
return stream.finish(S, 'ok', {S.last, ARGV[13], 0})
