-- flags: allow-oom; after: context entries groups filters consumers retention failures dispatch stream
-- Sets the end mark of the stream to ARGV[4], '1' or '0'.

local S = stream.begin()
if not S then
  return {'gone'}
end
set(S, 'ended', tonumber(ARGV[4]))
S.has_changed = true
return stream.finish(S, 'ok', 0)
