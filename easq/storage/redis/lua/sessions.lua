-- flags: no-writes; after: context entries groups consumers
-- Answers the connected consumers, as {group, user, number}.

local S = open_stream(PREFIX)
if not S then
  return {'gone'}
end
local found = {}
for _, G in ipairs(groups.all(S)) do
  for number, s in pairs(consumers.sessions(G)) do
    found[#found + 1] = {G.name, s.user, number}
  end
end
return {'ok', found}
