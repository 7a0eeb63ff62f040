-- flags: allow-oom; after: context entries groups filters consumers retention failures dispatch stream
-- Deletes the items below ARGV[4] for all groups, as many as one call may. In the first call ARGV[4] is '': then the
-- bound is ARGV[5] or the next index, whichever is lower. Answers how many were deleted, whether there are more, and
-- the bound.

local S = stream.begin()
if not S then
  return {'gone'}
end
stream.write_for_wait(S)
local below = ARGV[4]
if below == '' then
  below = id_of(math.min(tonumber(ARGV[5]), S.last + 1))
end
local gone = call('ZRANGEBYLEX', S.p .. 'all', '-', '(' .. below, 'LIMIT', 0, CONF.budget)
local more = #gone == CONF.budget
for _, id in ipairs(call('HKEYS', S.p .. 'claims')) do
  if id < below then
    gone[#gone + 1] = id
  end
end
retention.remove(S, gone)
dispatch.all(S)
return stream.finish(S, 'ok', {#gone, more and 1 or 0, below})
