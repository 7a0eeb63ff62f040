-- flags: no-writes; after: context entries scans
-- Counts the items from index ARGV[4] on that have the tags ARGV[5] and, unless it is '', the priority ARGV[6]. Answers
-- the count within the budget of one call, and the index to go on from ('': at the end).

local S = open_stream(PREFIX)
if not S then
  return {'gone'}
end
local wanted, priority = tags_in(ARGV[5], 1), tonumber(ARGV[6])
if next(wanted) == nil then
  return {'ok', {call('ZCARD', priority and entries.level(S, priority) or S.p .. 'all'), ''}}
end
local count = 0
local rest = scans.each(S, id_of(tonumber(ARGV[4])), wanted, function(id)
  if not priority or entries.priority(S, id) == priority then
    count = count + 1
  end
end)
return {'ok', {count, rest}}
