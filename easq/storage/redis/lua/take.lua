-- flags: allow-oom; after: context entries groups filters consumers retention failures dispatch stream scans
-- Reads as `read` does, and claims the items under the name ARGV[9]. Nothing is claimed if they are fewer than ARGV[8]
-- (and not more than half of ARGV[7] bytes). A long scan returns to the caller, who goes on with the items found so far
-- (ARGV[10] and on).

local S = stream.begin()
if not S then
  return {'gone'}
end
work.left, work.more = CONF.budget, false
local most, bytes, minimum, size = tonumber(ARGV[5]), tonumber(ARGV[7]), tonumber(ARGV[8]), 0
local ids = {}

local function found(id)
  local more = entries.size(S, id)
  if #ids > 0 and size + more > bytes then
    return true
  end
  size = size + more
  ids[#ids + 1] = id
  return #ids >= most
end

for place = 10, #ARGV do
  if entries.visible(S, ARGV[place]) then
    found(ARGV[place])
  end
end
local rest = ''
if #ids < most then
  rest = scans.each(S, scans.start(S, ARGV[4]), tags_in(ARGV[6], 1), found)
end
work.left, work.more = CONF.budget, false
if rest ~= '' then
  return stream.finish(S, 'ok', {rest, ids})
end
if #ids < minimum and size <= bytes / 2 then
  return stream.finish(S, 'ok', {'', {}})
end
local frames = {}
for place, id in ipairs(ids) do
  frames[place] = scans.frame(S, id)
  entries.claim(S, id, ARGV[9])
  for _, G in ipairs(groups.all(S)) do
    local number = groups.owner(G, id)
    if number ~= 0 and call('ZSCORE', S.p .. 'box:' .. number, id) then
      consumers.end_delivery(G, {id})
    end
  end
end
if #ids > 0 then
  call('ZADD', S.p .. 'servers', NOW + CONF.lease, SERVER)
end
dispatch.all(S)
return stream.finish(S, 'ok', {'', frames})
