-- flags: allow-oom; after: stream entries groups members handout rules
-- The calling server stops: its connections are closed and its claims are back, as far as one call goes. Answers
-- whether there are more.

local S = rules.begin()
if not S then
  return {'gone'}
end
rules.leave_server(S, SERVER, false)
local more = work.more and 1 or 0
handout.dispatch_all(S)
return rules.finish(S, 'ok', more)
