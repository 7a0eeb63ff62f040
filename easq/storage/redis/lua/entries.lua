-- The entries of a stream by priority and index, and the claimed ones.
--
-- PREFIX head      hash: index -> priority and size (four bytes each), then the tags
-- PREFIX data      hash: index -> payload
-- PREFIX all       zset, score 0: the visible indexes
-- PREFIX lane:P    zset, score 0: the visible indexes of priority P
-- PREFIX classes   zset: the priorities that have visible entries
-- PREFIX rids      zset, score 0: length and text of a request id, then the index
-- PREFIX claims    hash: index -> 'SERVER:NUMBER;', the name of the claim, which is used once
-- PREFIX answers   hash: 'INDEX\0GROUP' -> what goes to the sink if no group commits the item that this group gave up

local entries = {}

function entries.head(S, id)
  local head = S.heads[id]
  if head == nil then
    head = call('HGET', S.p .. 'head', id)
    S.heads[id] = head
  end
  return head
end

function entries.present(S, id)
  return entries.head(S, id) ~= false
end

function entries.visible(S, id)
  return call('ZSCORE', S.p .. 'all', id) ~= false
end

-- Answers whether any entry is visible
function entries.any(S)
  return call('EXISTS', S.p .. 'all') == 1
end

function entries.priority(S, id)
  return (struct.unpack('>I4', entries.head(S, id)))
end

function entries.size(S, id)
  local _, size = struct.unpack('>I4I4', entries.head(S, id))
  return size
end

function entries.rank(S, id)
  return rank_of(entries.priority(S, id), id)
end

function entries.tags(S, id)
  return tags_in(entries.head(S, id), 9)
end

-- Answers the priorities that have visible entries, highest first
function entries.classes(S)
  if not S.classes then
    S.classes = {}
    for place, priority in ipairs(call('ZREVRANGE', S.p .. 'classes', 0, -1)) do
      S.classes[place] = tonumber(priority)
    end
  end
  return S.classes
end

-- Answers the key of the visible indexes of one priority
function entries.level(S, priority)
  return S.p .. 'lane:' .. string.format('%d', priority)
end

local function rid_member(head, id)
  local rid = tags_in(head, 9)['requestId']
  return rid and struct.pack('>I4', #rid) .. rid .. id
end

local function show(S, id, priority)
  local level = entries.level(S, priority)
  call('ZADD', S.p .. 'all', 0, id)
  call('ZADD', level, 0, id)
  if call('ZCARD', level) == 1 then
    call('ZADD', S.p .. 'classes', priority, string.format('%d', priority))
    S.classes = nil
  end
end

local function hide(S, id, priority)
  local level = entries.level(S, priority)
  call('ZREM', S.p .. 'all', id)
  call('ZREM', level, id)
  if call('EXISTS', level) == 0 then
    call('ZREM', S.p .. 'classes', string.format('%d', priority))
    S.classes = nil
  end
end

function entries.has_room(S, size, max_items, max_bytes)
  return S.len < max_items and S.size + size <= max_bytes
end

-- Stores a visible entry under a new index, and answers that as text
function entries.store(S, priority, tags, data)
  set(S, 'last', S.last + 1)
  local id = id_of(S.last)
  local head = struct.pack('>I4I4', priority, #data) .. tags
  call('HSET', S.p .. 'head', id, head)
  call('HSET', S.p .. 'data', id, data)
  local member = rid_member(head, id)
  if member then
    call('ZADD', S.p .. 'rids', 0, member)
  end
  show(S, id, priority)
  set(S, 'len', S.len + 1)
  set(S, 'size', S.size + #data)
  S.heads[id] = head
  note_arrival(S, id, head)
  return id
end

function entries.claim(S, id, owner)
  hide(S, id, entries.priority(S, id))
  call('HSET', S.p .. 'claims', id, owner)
  set(S, 'csize', S.csize + entries.size(S, id))
end

-- Makes the claimed entry visible again
function entries.release(S, id)
  call('HDEL', S.p .. 'claims', id)
  set(S, 'csize', S.csize - entries.size(S, id))
  show(S, id, entries.priority(S, id))
  set(S, 'rel', S.rel + 1)
  note_arrival(S, id, entries.head(S, id))
end

-- Reads the heads of these entries with one command
function entries.load(S, ids)
  in_chunks(ids, function(part)
    for place, head in ipairs(call('HMGET', S.p .. 'head', unpack(part))) do
      S.heads[part[place]] = head
    end
  end)
end

local function drop_visible(S, by_class)
  for priority, ids in pairs(by_class) do
    local level = entries.level(S, priority)
    call('ZREM', S.p .. 'all', unpack(ids))
    call('ZREM', level, unpack(ids))
    if call('EXISTS', level) == 0 then
      call('ZREM', S.p .. 'classes', string.format('%d', priority))
      S.classes = nil
    end
  end
end

-- Removes present entries, some hundred at most. Groups have to forget them before
function entries.remove(S, ids)
  local by_class, rids, total = {}, {}, 0
  for place, owner in ipairs(call('HMGET', S.p .. 'claims', unpack(ids))) do
    local id = ids[place]
    local head = entries.head(S, id)
    local priority, size = struct.unpack('>I4I4', head)
    if owner then
      set(S, 'csize', S.csize - size)
    else
      by_class[priority] = by_class[priority] or {}
      table.insert(by_class[priority], id)
    end
    rids[#rids + 1] = rid_member(head, id)
    total = total + size
    S.heads[id] = false
  end
  drop_visible(S, by_class)
  for _, part in ipairs({'claims', 'head', 'data'}) do
    call('HDEL', S.p .. part, unpack(ids))
  end
  if #rids > 0 then
    call('ZREM', S.p .. 'rids', unpack(rids))
  end
  set(S, 'len', S.len - #ids)
  set(S, 'size', S.size - total)
end

-- Answers up to `count` visible indexes from `start` on
function entries.from(S, start, count)
  return call('ZRANGEBYLEX', S.p .. 'all', '[' .. start, '+', 'LIMIT', 0, count)
end

-- Answers up to `most` indexes from `start` on that have this request id, visible or not
function entries.with_request(S, rid, start, most)
  local stem = struct.pack('>I4', #rid) .. rid
  local consumers = call('ZRANGEBYLEX', S.p .. 'rids', '[' .. stem .. start, '(' .. stem .. ':', 'LIMIT', 0, most)
  local found = {}
  for place, member in ipairs(consumers) do
    found[place] = string.sub(member, -16)
  end
  return found
end
