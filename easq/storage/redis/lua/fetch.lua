-- flags: allow-oom; after: stream entries groups members handout rules
-- The next items of the connection ARGV[4], as {index, deliveries, tags, data}; asked again with the same token, the
-- same ones, as far as they are still its own and were not handed to it once more.
--
-- ARGV[5] token  [6] '1': without data  [7] most items, 0: none but those of the token  [8] most bytes
-- `ok` items, `replaced` when the connection is not the caller's (any more), `ended` when its group is through

local S = rules.begin()
if not S then
  return {'gone'}
end
local number = tonumber(ARGV[4])
local s, G = members.look(S, number)
if not s or s.server ~= SERVER then
  return rules.finish(S, 'replaced')
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
  local box, size = S.p .. 'box:' .. number, 0
  for _, id in ipairs(call('ZRANGE', box, 0, ARGV[7] - 1)) do
    size = size + entries.size(S, id)
    if #ids > 0 and size > tonumber(ARGV[8]) then
      break
    end
    ids[#ids + 1] = id
  end
  if #ids > 0 then
    call('ZREM', box, unpack(ids))
    for _, id in ipairs(ids) do
      call('HINCRBY', G.g .. 'deliv', id, 1)
    end
    groups.note_busy(G, ids)
    call('SET', S.p .. 'got:' .. number, ARGV[5] .. ':' .. table.concat(ids, ' '))
  end
end
if #ids == 0 and rules.is_through(S, G) then
  return rules.finish(S, 'ended')
end
local items = {}
if #ids > 0 then
  local counts = call('HMGET', G.g .. 'deliv', unpack(ids))
  local data = ARGV[6] == '1' and {} or call('HMGET', S.p .. 'data', unpack(ids))
  for place, id in ipairs(ids) do
    items[place] = {id, tonumber(counts[place]), string.sub(entries.head(S, id), 9), data[place] or ''}
  end
end
return rules.finish(S, 'ok', items)
