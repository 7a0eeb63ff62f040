-- flags: allow-oom; after: stream entries groups members handout rules
-- Items with an index under ARGV[4] ('' at the first call: ARGV[5] and what is there now) are gone for all groups, as
-- many as one call may. Answers how many were, whether there are more, and the bound to go on with.

local S = rules.begin()
if not S then
  return {'gone'}
end
rules.affirm(S)
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
rules.remove(S, gone)
handout.dispatch_all(S)
return rules.finish(S, 'ok', {#gone, more and 1 or 0, below})
