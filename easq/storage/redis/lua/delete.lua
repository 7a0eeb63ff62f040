-- flags: allow-oom; after: context entries groups filters consumers retention failures dispatch stream
-- Deletes the items ARGV[4] and on for all groups; answers how many were present.

local S = stream.begin()
if not S then
  return {'gone'}
end
stream.write_for_wait(S)
local gone, seen = {}, {}
for place = 4, #ARGV do
  local id = ARGV[place]
  if not seen[id] and entries.present(S, id) then
    gone[#gone + 1] = id
  end
  seen[id] = true
end
retention.remove(S, gone)
dispatch.all(S)
return stream.finish(S, 'ok', #gone)
