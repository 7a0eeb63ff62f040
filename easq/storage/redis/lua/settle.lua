-- flags: allow-oom; after: context entries groups filters consumers retention failures dispatch stream
-- Deletes, for all groups, those of the items ARGV[5] and on that are claimed under the name ARGV[4].

local S = stream.begin()
if not S then
  return {'gone'}
end
local gone = {}
for place = 5, #ARGV do
  if call('HGET', S.p .. 'claims', ARGV[place]) == ARGV[4] then
    gone[#gone + 1] = ARGV[place]
  end
end
retention.remove(S, gone)
dispatch.all(S)
return stream.finish(S, 'ok', #gone)
