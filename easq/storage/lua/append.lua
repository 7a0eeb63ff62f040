-- flags: ; after: stream entries groups members handout rules
-- The item is stored under a new index and handed out, once for an idempotency key.
--
-- ARGV[4] highest index that the caller has seen  [5] class  [6] tags  [7] data  [8] most items  [9] most bytes
-- [10] '1': evict  [11] key, or ''  [12] SHA-256 of the data  [13] request id
--
-- PREFIX keys     hash: idempotency key -> index, request id, digest, when (ms)
-- PREFIX keyring  list: the keys in the order in which they came
--
-- `ok` {index, request id, duplicate}, `full` {items, bytes}, `reused`, `ended`, `behind`; `again`: room was made for a
-- part of what has to go, call once more.

local S = rules.begin()
if not S then
  return {'gone'}
end
if S.last < tonumber(ARGV[4]) then
  return rules.finish(S, 'behind')
end

local key = ARGV[11]
if key ~= '' then
  local known = call('HGET', S.p .. 'keys', key)
  if known then
    local f = cmsgpack.unpack(known)
    if f[3] ~= ARGV[12] then
      return rules.finish(S, 'reused')
    end
    rules.affirm(S)
    return rules.finish(S, 'ok', {f[1], f[2], 1})
  end
end
if S.ended == 1 then
  return rules.finish(S, 'ended')
end

local size, max_items, max_bytes, evict = #ARGV[7], tonumber(ARGV[8]), tonumber(ARGV[9]), ARGV[10] == '1'

local function would_have_room(unheld)
  local len, bytes = S.len, S.size
  local gone = {}
  for _, id in ipairs(unheld) do
    gone[id] = true
    len, bytes = len - 1, bytes - entries.size(S, id)
  end
  if evict then
    len, bytes = 0, 0
    for _, id in ipairs(call('HKEYS', S.p .. 'claims')) do
      if not gone[id] then
        len, bytes = len + 1, bytes + entries.size(S, id)
      end
    end
  end
  return len < max_items and bytes + size <= max_bytes
end

local function make_room()
  for _, G in ipairs(groups.all(S)) do
    if G.left >= 0 then
      groups.leave_at(G, -1)
    end
  end
  rules.remove_unheld(S, '')
  while not entries.has_room(S, size, max_items, max_bytes) do
    local oldest = entries.from(S, '', 1)[1]
    if not oldest or not spend() then
      return
    end
    rules.remove(S, {oldest})
  end
end

if not entries.has_room(S, size, max_items, max_bytes) then
  work.left, work.more = CONF.budget, false
  local connected = {}
  for _, G in ipairs(groups.all(S)) do
    if G.connected > 0 then
      connected[#connected + 1] = G
    end
  end
  if would_have_room((groups.done_by(connected, ''))) then
    work.left, work.more = CONF.budget, false
    make_room()
    if not entries.has_room(S, size, max_items, max_bytes) then
      return rules.finish(S, 'again')
    end
  else
    return rules.finish(S, 'full', {S.len, S.size})
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
handout.dispatch_all(S)
return rules.finish(S, 'ok', {S.last, ARGV[13], 0})
