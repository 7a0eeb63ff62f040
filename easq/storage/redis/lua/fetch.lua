-- flags: allow-oom; after: context entries groups filters consumers retention failures dispatch stream
-- Answers the next items of the connection ARGV[4], as {index, deliveries, tags, data}. If it is called again with the
-- same token, it answers the same items again, without those that are no longer pending there or were dispatched once
-- more.
--
-- ARGV[5] token  [6] '1': without data  [7] most items; 0: only those of the token  [8] most bytes
--
-- Answers `ok` and the items; `replaced` when the connection is not (or no longer) the caller's; `ended` when the
-- stream has ended and the group has committed everything.

local S = stream.begin()
if not S then
  return {'gone'}
end
local number = tonumber(ARGV[4])
local s, G = consumers.read_session(S, number)
if not s or s.server ~= SERVER then
  return stream.finish(S, 'replaced')
end
local got = call('GET', S.p .. 'got:' .. number) or ''
local token, again = string.match(got, '^(%d+):(.*)$')
local ids = {}
if token == ARGV[5] then
  for id in string.gmatch(again, '%d+') do
    if groups.owner(G, id) == number and not call('ZSCORE', S.p .. 'box:' .. number, id) then
      ids[#ids + 1] = id
    end
  end
end
if #ids == 0 and tonumber(ARGV[7]) > 0 then
  local unsent, size = S.p .. 'box:' .. number, 0
  for _, id in ipairs(call('ZRANGE', unsent, 0, ARGV[7] - 1)) do
    size = size + entries.size(S, id)
    if #ids > 0 and size > tonumber(ARGV[8]) then
      break
    end
    ids[#ids + 1] = id
  end
  if #ids > 0 then
    call('ZREM', unsent, unpack(ids))
    for _, id in ipairs(ids) do
      call('HINCRBY', G.g .. 'deliv', id, 1)
    end
    groups.note_busy(G, ids)
    call('SET', S.p .. 'got:' .. number, ARGV[5] .. ':' .. table.concat(ids, ' '))
  end
end
if #ids == 0 and stream.is_through(S, G) then
  return stream.finish(S, 'ended')
end
local items = {}
if #ids > 0 then
  local counts = call('HMGET', G.g .. 'deliv', unpack(ids))
  local data = ARGV[6] == '1' and {} or call('HMGET', S.p .. 'data', unpack(ids))
  for place, id in ipairs(ids) do
    items[place] = {id, tonumber(counts[place]), string.sub(entries.head(S, id), 9), data[place] or ''}
  end
end
return stream.finish(S, 'ok', items)
